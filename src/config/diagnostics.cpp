#include "config/diagnostics.h"

#include <algorithm>

#include "config/clean_text.h"
#include "config/load.h"

namespace kla {
namespace {

constexpr size_t kWindow = 140;  // characters of a long line that are shown

std::string located(const Origin& at, const std::string& file, const std::string& message) {
  const std::string gutter =
      at.kind == Origin::Kind::file ? std::to_string(at.line) : std::string();
  const std::string place = at.kind == Origin::Kind::file
                                ? at.file + ":" + gutter + ":" + std::to_string(at.column)
                            : at.kind == Origin::Kind::command_line ? "command line"
                                                                    : file;
  std::string out = place + ": error: " + message + "\n";
  if (at.kind == Origin::Kind::builtin) return out;
  const std::string pad(5 - std::min<size_t>(gutter.size(), 5), ' ');
  out += pad + gutter + " | " + at.text + "\n";
  out += std::string(std::max<size_t>(gutter.size(), 5), ' ') + " | ";
  out += std::string(static_cast<size_t>(at.caret), ' ') + "^";
  return out + std::string(static_cast<size_t>(at.length - 1), '~') + "\n";
}

}  // namespace

SourceText::SourceText(Origin::Kind kind, std::string name, std::string text, size_t value_at)
    : kind_(kind), name_(std::move(name)), text_(std::move(text)), value_at_(value_at) {
  starts_.push_back(0);
  for (size_t at = 0; (at = text_.find('\n', at)) != std::string::npos; starts_.push_back(++at)) {
  }
}

std::string_view SourceText::line(int number) const {
  if (number < 1 || static_cast<size_t>(number) > starts_.size()) return {};
  std::string_view rest = std::string_view(text_).substr(starts_[static_cast<size_t>(number) - 1]);
  rest = rest.substr(0, rest.find('\n'));
  if (!rest.empty() && rest.back() == '\r') rest.remove_suffix(1);
  return rest;
}

Origin SourceText::at(int line_number, size_t byte, size_t bytes) const {
  const std::string_view whole = line(line_number);
  byte = std::min(byte, whole.size());
  const size_t before = count_characters(whole.substr(0, byte));
  const size_t length = count_characters(whole.substr(byte, bytes));
  const size_t cut = before > kWindow / 2 ? before - kWindow / 2 : 0;
  const std::string_view shown = whole.substr(bytes_of(whole, cut));
  Origin origin;
  origin.kind = kind_;
  origin.file = name_;
  origin.line = line_number;
  origin.column = static_cast<int>(before) + 1;
  origin.text = displayable(shown.substr(0, bytes_of(shown, kWindow)));
  origin.caret = static_cast<int>(before - cut);
  origin.length = static_cast<int>(std::clamp<size_t>(length, 1, kWindow / 2));
  origin.label = kind_ == Origin::Kind::command_line
                     ? "command line"
                     : displayable(name_) + ":" + std::to_string(line_number) + ":" +
                           std::to_string(origin.column);
  return origin;
}

void Diagnostics::error(const Origin& at, const std::string& message, const std::string& note) {
  if (errors_.size() == kMost) fail();
  errors_.push_back(located(at, file_, message) + (note.empty() ? "" : "note: " + note + "\n"));
}

void Diagnostics::fail() const {
  std::string text;
  for (const std::string& error : errors_) text += error;
  const std::string count = std::to_string(errors_.size());
  throw ConfigError(text +
                    (errors_.size() == 1      ? "1 error"
                     : errors_.size() < kMost ? count + " errors"
                                              : count + " errors or more") +
                    "; nothing was started.");
}

}  // namespace kla
