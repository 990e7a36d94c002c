// The strict wrapper round yaml-cpp, and the only user of it. yaml-cpp 0.7 accepts duplicate keys,
// ignores a second document, loops on alias bombs, takes NUL bytes and reads 010 as 8; what comes
// out of here is a plain tree of text with places: no anchors, aliases, tags or merge keys, unique
// keys, bounded depth, and no numbers yet.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "config/diagnostics.h"

namespace kla {

struct YamlNode {
  enum class Kind { null, scalar, list, map };
  Kind kind = Kind::null;
  std::string text;     // scalar
  bool quoted = false;  // scalar: in quotes or a block, never a number
  int line = 1;
  size_t byte = 0;               // from the start of the line
  size_t bytes = 1;              // to underline
  std::vector<YamlNode> keys;    // map: scalars
  std::vector<YamlNode> values;  // map, list
};

inline constexpr int64_t kMaxConfigBytes = 1 << 20;

// The text of a config file. Throws Error with what is wrong.
std::string read_config_text(const std::string& path);

// Reads the one document in the text (an override: from value_at on). Reports one error and gives
// nothing if it breaks a rule above.
std::optional<YamlNode> parse_yaml(const SourceText& source, Diagnostics& diagnostics);

inline Origin origin_of(const SourceText& source, const YamlNode& node) {
  return source.at(node.line, node.byte, node.bytes);
}

}  // namespace kla
