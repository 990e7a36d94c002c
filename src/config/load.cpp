#include "config/load.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "config/check.h"
#include "config/clean_text.h"
#include "config/freeze.h"
#include "config/schema.h"
#include "config/suggest.h"
#include "config/value.h"
#include "config/yaml.h"

namespace kla {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxIncludeDepth = 8;
constexpr size_t kMaxFiles = 64;

std::string list_of(const std::vector<std::string>& words, const std::string& between) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : between) + word;
  return text;
}

// Reads files and overrides into the struct a schema is bound to, in order of precedence: every
// value is checked and assigned where it stands, later ones win.
class Loader {
 public:
  Loader(const Schema& schema, Sources& sources, const std::string& file)
      : schema_(schema), sources_(sources), diagnostics_(displayable(file)) {
    sources_.file = file;
  }

  void read(const std::string& path, const Origin& included_at = {});
  void override_with(const std::vector<std::string>& words);
  void interpolate();
  template <class Root>
  void finish(const Root& config, Completeness completeness);

 private:
  void include(const SourceText& source, const YamlNode& list);
  void apply(const SourceText& source, const YamlNode& map, const std::string& section);
  void apply_key(const SourceText& source, const YamlNode& value, const std::string& path);
  void apply_override(const SourceText& source, size_t key_at, const std::string& path);
  void unknown_key(const Origin& at, const std::string& section, const std::string& name,
                   const std::string& below);
  std::string interpolated(const std::string& text, const std::string& path);
  const Field* variable(const std::string& name) const;

  const Schema& schema_;
  Sources& sources_;
  Diagnostics diagnostics_;
  std::set<std::string> failed_;      // keys and sections with an error
  bool unread_ = false;               // some text could not be read at all
  std::vector<std::string> chain_;    // files being read, outermost first
  std::vector<std::string> visited_;  // their canonical paths
};

void Loader::read(const std::string& path, const Origin& included_at) {
  const std::string canonical = fs::weakly_canonical(path).string();
  const bool cycle = std::find(visited_.begin(), visited_.end(), canonical) != visited_.end();
  chain_.push_back(displayable(path));
  visited_.push_back(canonical);
  const std::string chain = list_of(chain_, " -> ");
  std::optional<YamlNode> root;
  if (cycle) {
    diagnostics_.error(included_at, "files include each other in a circle", chain);
  } else if (chain_.size() > kMaxIncludeDepth) {
    diagnostics_.error(
        included_at,
        "includes are nested deeper than " + std::to_string(kMaxIncludeDepth) + " files", chain);
  } else if (sources_.files.size() >= kMaxFiles) {
    diagnostics_.error(included_at, "more than " + std::to_string(kMaxFiles) + " files");
  } else {
    try {
      const SourceText source(Origin::Kind::file, path, read_config_text(path));
      root = parse_yaml(source, diagnostics_);
      if (root) apply(source, *root, "");
    } catch (const ConfigError&) {
      throw;
    } catch (const Error& error) {
      diagnostics_.error(included_at, "cannot read " + shown(path) + ": " + error.what());
    }
    sources_.files.push_back(path);
  }
  unread_ = unread_ || !root;
  chain_.pop_back();
  visited_.pop_back();
}

void Loader::include(const SourceText& source, const YamlNode& list) {
  if (list.kind != YamlNode::Kind::list) {
    diagnostics_.error(origin_of(source, list), "'defaults' expects a list of files",
                       "write 'defaults: [FILE, ...]', relative to this file");
    return;
  }
  for (const YamlNode& item : list.values) {
    if (item.kind == YamlNode::Kind::scalar) {
      const fs::path path = fs::path(source.name()).parent_path() / item.text;
      read(path.lexically_normal().string(), origin_of(source, item));
    } else {
      diagnostics_.error(origin_of(source, item), "'defaults' expects a list of files");
    }
  }
}

void Loader::apply(const SourceText& source, const YamlNode& map, const std::string& section) {
  if (map.kind == YamlNode::Kind::null) return;  // a section whose keys are all commented out
  if (map.kind != YamlNode::Kind::map) {
    failed_.insert(section);
    diagnostics_.error(origin_of(source, map),
                       section.empty()
                           ? "a config file is made of 'key: value' lines"
                           : "'" + section + "' expects a section of 'key: value' lines",
                       "keys here: " + list_of(schema_.names_below(section), ", "));
    return;
  }
  const bool file_root = section.empty() && source.kind() == Origin::Kind::file;
  for (size_t i = 0; i < map.keys.size() && file_root; ++i)
    if (map.keys[i].text == "defaults") include(source, map.values[i]);
  for (size_t i = 0; i < map.keys.size(); ++i) {
    const std::string& name = map.keys[i].text;
    const std::string path = Schema::join(section, name);
    const bool dotted = name.find('.') != std::string::npos;
    if (file_root && name == "defaults") continue;
    if (!dotted && !name.empty() && (schema_.find(path) || schema_.is_section(path))) {
      apply_key(source, map.values[i], path);
    } else {
      unknown_key(origin_of(source, map.keys[i]), section, name, "");
    }
  }
}

void Loader::apply_key(const SourceText& source, const YamlNode& value, const std::string& path) {
  const Field* field = schema_.find(path);
  if (!field) return apply(source, value, path);
  if (!assign(*field, value, source, diagnostics_)) {
    failed_.insert(path);
    return;
  }
  Origin origin = origin_of(source, value);
  origin.spelt = spell(field->slot);
  if (source.kind() == Origin::Kind::file && source.line(1) == kFrozenHeader)
    origin.label = frozen_comment(source.line(value.line));
  sources_.assignments[path].push_back(std::move(origin));
}

void Loader::unknown_key(const Origin& at, const std::string& section, const std::string& name,
                         const std::string& below) {
  std::vector<std::string> candidates = suggest_keys(schema_, section, name);
  for (std::string& candidate : candidates) {
    if (!below.empty() && schema_.find(candidate + "." + below)) candidate += "." + below;
    failed_.insert(candidate);
  }
  const bool dotted = schema_.find(name) && name.find('.') != std::string::npos;
  std::string note = dotted ? "in a file keys are nested: write '" +
                                  name.substr(0, name.find('.')) + ":' and the rest below it"
                            : did_you_mean(candidates);
  note += (note.empty() ? "" : "  ");
  note += "(known keys here: " + list_of(schema_.names_below(section), ", ") + ")";
  diagnostics_.error(at, "unknown key " + shown(Schema::join(section, name)), note);
}

void Loader::override_with(const std::vector<std::string>& words) {
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    const size_t key_at = word.rfind("--", 0) == 0 ? 2 : 0;
    const size_t equals = word.find('=');
    const std::string path = word.substr(key_at, equals - key_at);
    if (equals != std::string::npos) {
      apply_override({Origin::Kind::command_line, "", word, equals + 1}, key_at, path);
    } else if (key_at == 2 && i + 1 < words.size()) {
      const std::string both = word + " " + words[++i];
      apply_override({Origin::Kind::command_line, "", both, word.size() + 1}, key_at, path);
    } else {
      const SourceText source(Origin::Kind::command_line, "", word);
      diagnostics_.error(source.at(1, 0, word.size()), shown(word) + " has no value",
                         "write key=value, for example optim.lr=3e-4");
    }
  }
}

void Loader::apply_override(const SourceText& source, size_t key_at, const std::string& path) {
  const std::string value = source.text().substr(source.value_at());
  sources_.overrides.push_back(path + "=" + value);
  if (!schema_.find(path) && (path.empty() || !schema_.is_section(path))) {
    size_t begin = 0;  // of the first name that is not known
    for (size_t dot = 0; (dot = path.find('.', begin)) != std::string::npos; begin = dot + 1)
      if (!schema_.is_section(path.substr(0, dot))) break;
    const size_t end = path.find('.', begin);
    return unknown_key(source.at(1, key_at, path.size()), path.substr(0, begin ? begin - 1 : 0),
                       path.substr(begin, end - begin),
                       end == std::string::npos ? "" : path.substr(end + 1));
  }
  std::optional<YamlNode> node;
  if (value.empty()) {
    node.emplace();
    node->kind = YamlNode::Kind::scalar;
    node->quoted = true;
    node->byte = source.value_at();
  } else {
    node = parse_yaml(source, diagnostics_);
  }
  if (node) {
    apply_key(source, *node, path);
  } else {
    failed_.insert(path);
  }
}

const Field* Loader::variable(const std::string& name) const {
  if (name == "name") return schema_.find("run.name");
  return name == "seed" ? schema_.find("run.seed") : nullptr;
}

std::string Loader::interpolated(const std::string& text, const std::string& path) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t open = text.find('{', at);
    const size_t close = text.find('}', open);
    out += text.substr(at, open - at);
    if (close == std::string::npos)
      return out + (open == std::string::npos ? "" : text.substr(open));
    const std::string name = text.substr(open + 1, close - open - 1);
    const Field* field = variable(name);
    if (field) {
      out += spell(field->slot);
    } else {
      const Origin* origin = sources_.origin_of(path);
      failed_.insert(path);
      diagnostics_.error(origin ? *origin : Origin{},
                         "'" + path + "' holds {" + displayable(name) + "}, which is not known",
                         "{name} and {seed} of the section 'run' are");
    }
    at = close + 1;
  }
  return out;
}

void Loader::interpolate() {
  for (const Field& field : schema_.fields()) {
    if (!field.traits.path) continue;
    if (auto* const* text = std::get_if<std::string*>(&field.slot))
      **text = interpolated(**text, field.path);
    if (auto* const* list = std::get_if<std::vector<std::string>*>(&field.slot))
      for (std::string& text : **list) text = interpolated(text, field.path);
  }
}

template <class Root>
void Loader::finish(const Root& config, Completeness completeness) {
  if (!unread_) {
    const CrossCheck report(sources_, failed_, diagnostics_);
    if (completeness == Completeness::complete) check_required(schema_, report);
    check(config, report);
  }
  if (!diagnostics_.empty()) diagnostics_.fail();
}

template <class Root>
Loaded<Root> load(const std::string& file, const std::vector<std::string>& overrides,
                  Completeness completeness) {
  Loaded<Root> loaded;
  const Schema schema = schema_of(loaded.config);
  Loader loader(schema, loaded, fs::path(file).lexically_normal().string());
  loader.read(loaded.file);
  loader.override_with(overrides);
  loader.interpolate();
  loader.finish(loaded.config, completeness);
  return loaded;
}

template <class Root>
std::vector<std::string> missing_keys_of(Root config) {
  const Schema schema = schema_of(config);
  std::vector<std::string> missing;
  for (const Field& field : schema.fields())
    if (field.traits.required && is_empty(field.slot)) missing.push_back(field.path);
  return missing;
}

template <class Root>
std::ptrdiff_t known_keys(const YamlNode& map) {
  Root config;
  const std::vector<std::string> names = schema_of(config).names_below("");
  return std::count_if(map.keys.begin(), map.keys.end(), [&](const YamlNode& key) {
    return std::find(names.begin(), names.end(), key.text) != names.end();
  });
}

}  // namespace

const Origin* Sources::origin_of(const std::string& path) const {
  const auto found = assignments.find(path);
  return found == assignments.end() ? nullptr : &found->second.back();
}

std::string Sources::label_of(const std::string& path) const {
  const Origin* origin = origin_of(path);
  return origin ? origin->label : Origin{}.label;
}

LoadedConfig load_config(const std::string& file, const std::vector<std::string>& overrides,
                         Completeness completeness) {
  return load<Config>(file, overrides, completeness);
}
LoadedPrepareConfig load_prepare_config(const std::string& file,
                                        const std::vector<std::string>& overrides,
                                        Completeness completeness) {
  return load<PrepareConfig>(file, overrides, completeness);
}
LoadedBenchConfig load_bench_config(const std::string& file,
                                    const std::vector<std::string>& overrides,
                                    Completeness completeness) {
  return load<BenchConfig>(file, overrides, completeness);
}

std::vector<std::string> missing_keys(const Config& config) {
  return missing_keys_of(config);
}
std::vector<std::string> missing_keys(const PrepareConfig& config) {
  return missing_keys_of(config);
}
std::vector<std::string> missing_keys(const BenchConfig& config) {
  return missing_keys_of(config);
}

ConfigKind kind_of_config(const std::string& file) {
  try {
    Diagnostics diagnostics(file);
    const SourceText source(Origin::Kind::file, file, read_config_text(file));
    const std::optional<YamlNode> root = parse_yaml(source, diagnostics);
    if (!root) return ConfigKind::training;
    const std::pair<std::ptrdiff_t, ConfigKind> kinds[] = {
        {known_keys<Config>(*root), ConfigKind::training},
        {known_keys<PrepareConfig>(*root), ConfigKind::prepare},
        {known_keys<BenchConfig>(*root), ConfigKind::bench},
        {known_keys<SweepConfig>(*root), ConfigKind::sweep}};
    return std::max_element(std::begin(kinds), std::end(kinds),
                            [](const auto& a, const auto& b) { return a.first < b.first; })
        ->second;
  } catch (const Error&) {
    return ConfigKind::training;  // loading it will say what is wrong
  }
}

void config_error(const Sources& sources, const std::string& path, const std::string& message,
                  const std::string& note) {
  const Origin* origin = sources.origin_of(path);
  Diagnostics diagnostics(sources.file);
  diagnostics.error(origin ? *origin : Origin{}, message, note);
  diagnostics.fail();
}

}  // namespace kla
