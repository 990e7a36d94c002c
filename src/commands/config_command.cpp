#include "commands/config_command.h"

#include <cstdio>

#include "config/freeze.h"
#include "config/load.h"
#include "config/schema.h"
#include "config/suggest.h"
#include "config/sweep_config.h"
#include "config/value.h"
#include "core/log.h"

namespace kla {
namespace {

// Calls work(load function, a default config) for the kind that `file` is.
template <class Work>
void with_kind(ConfigKind kind, Work&& work) {
  if (kind == ConfigKind::training) work(load_config, Config{});
  if (kind == ConfigKind::prepare) work(load_prepare_config, PrepareConfig{});
  if (kind == ConfigKind::bench) work(load_bench_config, BenchConfig{});
  if (kind == ConfigKind::sweep)
    throw Error(Exit::usage, "a sweep file is not one config but many",
                "'kla sweep plan FILE' prints its runs, 'kla config check FILE' checks it");
}

std::string list_of(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

std::string describe_field(const Field& field, const Field& fallback) {
  std::string text = field.path + ": " + expectation(field) + "\n  " + field.doc + "\n";
  text += "  default " + spell(fallback.slot);
  if (field.traits.required && is_empty(fallback.slot)) text += ", must be set";
  return text + (field.traits.safe ? "; may change when a run continues" : "");
}

std::string describe_section(const Schema& schema, const std::string& path) {
  std::string text;
  for (const Schema::Section& section : schema.sections())
    if (section.path == path) text = section.path + ": " + section.doc;
  for (const Field& field : schema.fields())
    if (field.path.rfind(path + ".", 0) == 0)
      text += "\n  " + field.path + " = " + spell(field.slot) + "  (" + field.doc + ")";
  return text;
}

// What set the key, in order of precedence.
std::string describe_value(const Sources& sources, const Field& field, const Field& fallback) {
  std::string text =
      "\n  value " + spell(field.slot) + ", set by\n    default  " + spell(fallback.slot);
  const auto found = sources.assignments.find(field.path);
  if (found != sources.assignments.end())
    for (const Origin& origin : found->second)
      text += "\n    " + origin.label + "  " + origin.spelt;
  return text + "  <- holds";
}

template <class Root>
bool explain(const std::string& key, Root defaults, Root values, const Sources* sources) {
  const Schema schema = schema_of(values), fallback = schema_of(defaults);
  if (!key.empty() && schema.is_section(key)) {
    log::info(describe_section(schema, key));
    return true;
  }
  const Field* field = schema.find(key);
  if (!field) return false;
  const Field& initial = *fallback.find(key);
  log::info(describe_field(*field, initial) +
            (sources ? describe_value(*sources, *field, initial) : ""));
  return true;
}

template <class Root>
[[noreturn]] void unknown_key(const std::string& key, Root config) {
  const Schema schema = schema_of(config);
  const size_t dot = key.rfind('.');
  const std::string section = dot == std::string::npos ? "" : key.substr(0, dot);
  const std::string name = key.substr(dot == std::string::npos ? 0 : dot + 1);
  const std::string guess = did_you_mean(suggest_keys(schema, section, name));
  throw Error(Exit::usage, "unknown key '" + log::printable(key) + "'",
              guess.empty() ? "sections: " + list_of(schema.names_below("")) : guess);
}

}  // namespace

int run_config_check(const std::vector<std::string>& files) {
  bool good = true;
  for (const std::string& file : files) {
    try {
      if (kind_of_config(file) == ConfigKind::sweep) {
        const size_t runs = load_sweep(file).runs.size();
        log::info(file + ": ok, a sweep of " + std::to_string(runs) + " runs");
        continue;
      }
      with_kind(kind_of_config(file), [&](auto load, auto root) {
        const auto loaded = load(file, {}, Completeness::fragment);
        root = loaded.config;
        const std::string missing = list_of(missing_keys(root));
        log::info(loaded.file + ": ok" +
                  (missing.empty() ? "" : ", a part: to run it also needs " + missing));
      });
    } catch (const ConfigError& error) {
      std::fprintf(stderr, "%s\n", error.what());
      good = false;
    }
  }
  return static_cast<int>(good ? Exit::ok : Exit::usage);
}

int run_config_show(const std::string& file, const std::vector<std::string>& overrides) {
  with_kind(kind_of_config(file), [&](auto load, auto) {
    const std::string text = freeze(load(file, overrides, Completeness::fragment));
    std::fwrite(text.data(), 1, text.size(), stdout);
  });
  return static_cast<int>(Exit::ok);
}

int run_config_explain(const std::string& key, const std::string& file,
                       const std::vector<std::string>& overrides) {
  if (file.empty()) {
    const bool known = explain(key, Config{}, Config{}, nullptr) ||
                       explain(key, PrepareConfig{}, PrepareConfig{}, nullptr) ||
                       explain(key, BenchConfig{}, BenchConfig{}, nullptr);
    if (!known) unknown_key(key, Config{});
    return static_cast<int>(Exit::ok);
  }
  with_kind(kind_of_config(file), [&](auto load, auto root) {
    const auto loaded = load(file, overrides, Completeness::fragment);
    if (!explain(key, root, loaded.config, &loaded)) unknown_key(key, root);
  });
  return static_cast<int>(Exit::ok);
}

}  // namespace kla
