#include "config/freeze.h"

#include <algorithm>

#include "config/schema.h"
#include "config/value.h"
#include "core/hash.h"

namespace kla {
namespace {

constexpr size_t kCommentColumn = 44;

std::string section_of(const std::string& path) {
  const size_t dot = path.rfind('.');
  return dot == std::string::npos ? "" : path.substr(0, dot);
}

size_t depth_of(const std::string& path) {
  return static_cast<size_t>(std::count(path.begin(), path.end(), '.'));
}

// "a:\n  b:\n" for the parts of `section` that `open` is not in already.
std::string headers(const std::string& section, const std::string& open) {
  std::string text;
  for (size_t end = 0; end != std::string::npos && !section.empty();) {
    end = section.find('.', end + 1);
    const std::string part = section.substr(0, end);
    if (open == part || open.rfind(part + ".", 0) == 0) continue;
    const size_t depth = depth_of(part);
    text += std::string(2 * depth, ' ') + part.substr(depth ? part.rfind('.') + 1 : 0) + ":\n";
  }
  return text;
}

std::string frozen_text(const Schema& schema, const Sources& sources, const std::string& hash) {
  std::string text(kFrozenHeader);
  text +=
      "\n# Every value of the run; the comment says where it came from.\n# sha256 " + hash + "\n";
  std::string open;
  for (const Field& field : schema.fields()) {
    const std::string section = section_of(field.path);
    text += headers(section, open);
    open = section;
    std::string line(2 * depth_of(field.path), ' ');
    line += field.path.substr(section.empty() ? 0 : section.size() + 1) + ": " + spell(field.slot);
    line.resize(std::max(line.size(), kCommentColumn), ' ');
    text += line + "  # " + sources.label_of(field.path) + "\n";
  }
  return text;
}

std::string hash_of(const Schema& schema) {
  std::vector<std::string> lines;
  for (const Field& field : schema.fields())
    if (!field.traits.safe) lines.push_back(field.path + " = " + spell(field.slot) + "\n");
  std::sort(lines.begin(), lines.end());
  std::string text;
  for (const std::string& line : lines) text += line;
  return sha256_hex(text);
}

template <class Root>
std::string freeze_root(const Loaded<Root>& loaded) {
  Root config = loaded.config;
  const Schema schema = schema_of(config);
  return frozen_text(schema, loaded, hash_of(schema));
}

}  // namespace

std::string freeze(const LoadedConfig& loaded) {
  return freeze_root(loaded);
}
std::string freeze(const LoadedPrepareConfig& loaded) {
  return freeze_root(loaded);
}
std::string freeze(const LoadedBenchConfig& loaded) {
  return freeze_root(loaded);
}

std::string config_hash(const Config& config) {
  Config copy = config;
  return hash_of(schema_of(copy));
}
std::string config_hash(const PrepareConfig& config) {
  PrepareConfig copy = config;
  return hash_of(schema_of(copy));
}

std::string frozen_comment(std::string_view line) {
  bool quoted = false;
  for (size_t i = 0; i < line.size(); ++i) {
    if (quoted && line[i] == '\\') {
      ++i;
    } else if (line[i] == '"') {
      quoted = !quoted;
    } else if (line[i] == '#' && !quoted) {
      const size_t text = line.find_first_not_of(' ', i + 1);
      return text == std::string_view::npos ? "" : std::string(line.substr(text));
    }
  }
  return "";
}

std::vector<std::pair<std::string, std::string>> config_values(const Config& config) {
  Config copy = config;
  const Schema schema = schema_of(copy);
  std::vector<std::pair<std::string, std::string>> values;
  for (const Field& field : schema.fields()) values.emplace_back(field.path, spell(field.slot));
  return values;
}

std::vector<ConfigDifference> diff_configs(const Config& before, const Config& after) {
  Config a = before, b = after;
  const Schema schema_a = schema_of(a), schema_b = schema_of(b);
  std::vector<ConfigDifference> differences;
  for (size_t i = 0; i < schema_a.fields().size(); ++i) {
    const Field& field = schema_a.fields()[i];
    const std::string was = spell(field.slot), is = spell(schema_b.fields()[i].slot);
    if (was != is) differences.push_back({field.path, was, is, field.traits.safe});
  }
  return differences;
}

}  // namespace kla
