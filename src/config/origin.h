// Where a value was written, and the text it stands in: what every config error points at.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kla {

struct Origin {
  enum class Kind { builtin, file, command_line };
  Kind kind = Kind::builtin;
  std::string file;  // as opened, normalised
  int line = 0;      // 1-based
  int column = 1;    // 1-based, in characters
  int length = 1;    // characters to underline
  std::string text;  // the line (a window of it, if long), or the override as it was typed
  int caret = 0;     // characters of `text` before the value
  std::string label = "default";  // "default", "FILE:LINE:COLUMN" or "command line"
  std::string spelt;              // the value given here, in YAML spelling
};

// A config file or one override word, whose values are located in it.
class SourceText {
 public:
  SourceText(Origin::Kind kind, std::string name, std::string text, size_t value_at = 0);

  // `line` is 1-based, `byte` counts from the start of the line.
  Origin at(int line, size_t byte, size_t bytes) const;
  std::string_view line(int number) const;  // without its end; empty if there is none

  Origin::Kind kind() const { return kind_; }
  const std::string& name() const { return name_; }
  const std::string& text() const { return text_; }
  size_t value_at() const { return value_at_; }

 private:
  Origin::Kind kind_;
  std::string name_;  // of the file
  std::string text_;
  size_t value_at_;             // bytes before the value of an override
  std::vector<size_t> starts_;  // of the lines
};

}  // namespace kla
