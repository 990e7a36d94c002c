// Reads a sweep file: its own keys by the schema, the settings below `grid` and `variants` by the
// schema of the training config, every mistake at its place; then loads the config of every run.
#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>

#include "config/clean_text.h"
#include "config/diagnostics.h"
#include "config/schema.h"
#include "config/suggest.h"
#include "config/sweep_config.h"
#include "config/value.h"
#include "config/yaml.h"

namespace kla {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMostRuns = 10000;
constexpr const char* kSeed = "run.seed";

// What a variant may not touch, and why.
const std::pair<const char*, const char*> kOwned[] = {
    {"run.name", "a run is named by its variant and seed"},
    {"run.dir", "the run directories lie below the sweep's 'dir'"},
    {"data.shuffle_seed", "it follows 'run.seed', so that all variants see the same batches"}};

std::string list_of(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

// Only what a name of a file may hold.
std::string file_name_of(std::string text) {
  for (char& c : text)
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '-') c = '_';
  return text;
}

struct Setting {
  std::string path, value;  // as spelt in YAML
};

struct GridAxis {
  std::string path;
  std::vector<std::string> values;
};

struct NamedVariant {
  std::string name;
  std::vector<Setting> settings;
};

class SweepReader {
 public:
  SweepReader(const std::string& file, const SourceText& source, Sweep& sweep)
      : source_(source),
        sweep_(sweep),
        diagnostics_(displayable(file)),
        own_(schema_of(sweep.config)),
        training_(schema_of(scratch_)) {}

  void read(const YamlNode& root);
  void expand();
  void load_runs();

 private:
  void own_key(const YamlNode& key, const YamlNode& value);
  void read_grid(const YamlNode& map);
  void read_variants(const YamlNode& map);
  void read_settings(const YamlNode& map, NamedVariant& variant);
  const Field* field_of(const YamlNode& key);
  std::optional<std::string> value_of(const Field& field, const YamlNode& node);
  void resolve_paths();
  void add_run(const NamedVariant& variant, const std::string& seed);
  void fail_if_any() {
    if (!diagnostics_.empty()) diagnostics_.fail();
  }
  void error(const YamlNode& at, const std::string& message, const std::string& note = "") {
    diagnostics_.error(origin_of(source_, at), message, note);
  }

  const SourceText& source_;
  Sweep& sweep_;
  Diagnostics diagnostics_;
  Config scratch_;  // takes the values of settings, to check them
  Schema own_, training_;
  YamlNode baseline_;
  std::vector<std::string> seeds_;
  std::vector<GridAxis> axes_;
  std::vector<NamedVariant> named_;
};

void SweepReader::read(const YamlNode& root) {
  if (root.kind != YamlNode::Kind::map) {
    error(root, "a sweep file is made of 'key: value' lines",
          "keys: base, baseline, dir, grid, name, references, variants");
    fail_if_any();
  }
  bool grid = false, variants = false;
  for (size_t i = 0; i < root.keys.size(); ++i) {
    const std::string& key = root.keys[i].text;
    if (key == "grid") read_grid(root.values[i]);
    if (key == "variants") read_variants(root.values[i]);
    grid = grid || key == "grid";
    variants = variants || key == "variants";
    if (key != "grid" && key != "variants") own_key(root.keys[i], root.values[i]);
  }
  for (const Field& field : own_.fields())
    if (field.traits.required && is_empty(field.slot) && diagnostics_.empty())
      diagnostics_.error({}, "'" + field.path + "' is not set", "it needs " + field.doc);
  if (!grid || (seeds_.empty() && diagnostics_.empty()))
    diagnostics_.error({}, "'grid' names no seeds", "write 'grid: {run.seed: [1, 2, 3]}'");
  if (!variants || (named_.empty() && diagnostics_.empty()))
    diagnostics_.error({}, "'variants' names none",
                       "write 'variants:' and below it 'NAME: {KEY: VALUE}' lines");
  fail_if_any();
}

void SweepReader::own_key(const YamlNode& key, const YamlNode& value) {
  const Field* field = own_.find(key.text);
  if (!field) {
    std::vector<std::string> known = own_.names_below("");
    known.insert(known.end(), {"grid", "variants"});
    std::sort(known.begin(), known.end());
    const std::string guess = did_you_mean(nearest(key.text, known));
    error(key, "unknown key " + shown(key.text),
          guess + (guess.empty() ? "" : "  ") + "(known keys here: " + list_of(known) + ")");
    return;
  }
  assign(*field, value, source_, diagnostics_);
  if (key.text == "baseline") baseline_ = value;
}

// The training key that `key` names, if a sweep may set it.
const Field* SweepReader::field_of(const YamlNode& key) {
  for (const auto& [path, why] : kOwned)
    if (key.text == path) {
      error(key, "'" + key.text + "' is set by the sweep itself", why);
      return nullptr;
    }
  const Field* field = training_.find(key.text);
  if (field) return field;
  const size_t dot = key.text.rfind('.');
  const std::string section = dot == std::string::npos ? "" : key.text.substr(0, dot);
  std::string note = did_you_mean(suggest_keys(
      training_, section, dot == std::string::npos ? key.text : key.text.substr(dot + 1)));
  if (training_.is_section(key.text))
    note = "write the whole key, such as '" + key.text + "." +
           training_.names_below(key.text).front() + ": VALUE'";
  error(key, "unknown key " + shown(key.text), note);
  return nullptr;
}

std::optional<std::string> SweepReader::value_of(const Field& field, const YamlNode& node) {
  if (!assign(field, node, source_, diagnostics_)) return std::nullopt;
  return spell(field.slot);
}

void SweepReader::read_grid(const YamlNode& map) {
  if (map.kind != YamlNode::Kind::map)
    return error(map, "'grid' expects 'KEY: [VALUES]' lines", "for example {run.seed: [1, 2, 3]}");
  for (size_t i = 0; i < map.keys.size(); ++i) {
    const Field* field = field_of(map.keys[i]);
    const YamlNode& list = map.values[i];
    if (!field) continue;
    if (list.kind != YamlNode::Kind::list || list.values.empty()) {
      error(list, "'" + field->path + "' expects a list of values to try");
      continue;
    }
    GridAxis axis{field->path, {}};
    for (const YamlNode& node : list.values)
      if (const auto value = value_of(*field, node)) {
        if (std::find(axis.values.begin(), axis.values.end(), *value) != axis.values.end())
          error(node, *value + " stands twice in the grid of '" + field->path + "'");
        axis.values.push_back(*value);
      }
    if (axis.path == kSeed)
      seeds_ = axis.values;
    else
      axes_.push_back(axis);
  }
}

void SweepReader::read_variants(const YamlNode& map) {
  if (map.kind != YamlNode::Kind::map)
    return error(map, "'variants' expects 'NAME: {KEY: VALUE}' lines");
  const Field* name = training_.find("run.name");
  for (size_t i = 0; i < map.keys.size(); ++i) {
    if (!assign(*name, map.keys[i], source_, diagnostics_)) continue;
    named_.push_back({map.keys[i].text, {}});
    read_settings(map.values[i], named_.back());
  }
}

void SweepReader::read_settings(const YamlNode& map, NamedVariant& variant) {
  if (map.kind == YamlNode::Kind::null) return;  // the base as it is
  if (map.kind != YamlNode::Kind::map)
    return error(map, "variant '" + variant.name + "' expects 'KEY: VALUE' settings",
                 "for example {model.step_size.rule: gdn}; {} is the base as it is");
  for (size_t i = 0; i < map.keys.size(); ++i) {
    if (map.keys[i].text == kSeed) {
      error(map.keys[i], "a variant cannot choose its seed",
            "seeds are paired: write them once, in 'grid: {run.seed: [1, 2, 3]}'");
      continue;
    }
    const Field* field = field_of(map.keys[i]);
    if (!field) continue;
    if (const auto value = value_of(*field, map.values[i]))
      variant.settings.push_back({field->path, *value});
  }
}

// Every named variant at every point of the grid.
void SweepReader::expand() {
  for (const GridAxis& axis : axes_) {
    const std::string leaf = axis.path.substr(axis.path.rfind('.') + 1);
    std::vector<NamedVariant> expanded;
    for (const NamedVariant& variant : named_)
      for (const std::string& value : axis.values) {
        NamedVariant point = variant;
        point.name += "-" + leaf + "_" + file_name_of(value);
        point.settings.push_back({axis.path, value});
        expanded.push_back(std::move(point));
      }
    named_ = std::move(expanded);
  }
  std::set<std::string> names;
  for (const NamedVariant& variant : named_) {
    if (!names.insert(variant.name).second)
      diagnostics_.error({}, "two points of the grid are both called '" + variant.name + "'");
    sweep_.variants.push_back(variant.name);
  }
  if (named_.size() * seeds_.size() > kMostRuns)
    diagnostics_.error({}, std::to_string(named_.size() * seeds_.size()) + " runs, the limit is " +
                               std::to_string(kMostRuns));
  std::string& baseline = sweep_.config.baseline;
  if (baseline.empty() && !sweep_.variants.empty()) baseline = sweep_.variants.front();
  if (names.count(baseline) == 0)
    error(baseline_, "'baseline' = " + shown(baseline) + " is not a variant",
          "variants: " + list_of(sweep_.variants));
  fail_if_any();
  resolve_paths();
}

void SweepReader::resolve_paths() {
  SweepConfig& c = sweep_.config;
  const fs::path folder = fs::path(sweep_.file).parent_path();
  c.base = (folder / c.base).lexically_normal().string();
  if (!c.references.empty()) c.references = (folder / c.references).lexically_normal().string();
  for (size_t at; (at = c.dir.find("{name}")) != std::string::npos;) c.dir.replace(at, 6, c.name);
}

void SweepReader::load_runs() {
  for (const std::string& seed : seeds_)
    for (const NamedVariant& variant : named_) add_run(variant, seed);
}

void SweepReader::add_run(const NamedVariant& variant, const std::string& seed) {
  SweepRun run;
  run.name = variant.name + "-s" + seed;
  run.variant = variant.name;
  run.seed = std::stoull(seed);
  for (const auto& [path, value] : variant.settings) run.settings.push_back(path + "=" + value);
  run.overrides = run.settings;
  for (const std::string& word :
       {std::string("run.seed=") + seed, "data.shuffle_seed=" + seed, "run.name=" + run.name,
        "run.dir=" + sweep_.config.dir + "/" + run.name})
    run.overrides.push_back(word);
  try {
    run.loaded = load_config(sweep_.config.base, run.overrides);
  } catch (const ConfigError& e) {
    throw ConfigError("run '" + run.name + "' of " + displayable(sweep_.file) + ":\n" + e.what());
  }
  sweep_.runs.push_back(std::move(run));
}

}  // namespace

Sweep load_sweep(const std::string& file) {
  Sweep sweep;
  sweep.file = fs::path(file).lexically_normal().string();
  Diagnostics diagnostics(displayable(sweep.file));
  std::string text;
  try {
    text = read_config_text(sweep.file);
  } catch (const Error& error) {
    diagnostics.error({}, "cannot read it: " + std::string(error.what()));
    diagnostics.fail();
  }
  const SourceText source(Origin::Kind::file, sweep.file, text);
  const std::optional<YamlNode> root = parse_yaml(source, diagnostics);
  if (!root) diagnostics.fail();
  SweepReader reader(sweep.file, source, sweep);
  reader.read(*root);
  reader.expand();
  reader.load_runs();
  return sweep;
}

}  // namespace kla
