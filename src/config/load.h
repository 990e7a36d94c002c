// Loading a config: YAML file + its `defaults:` includes + overrides -> struct, strictly. Whatever
// is wrong is reported with file, line, column and a suggestion, many errors at once, before
// anything starts. Other layers use three things here: load_config(), Sources (where a value came
// from) and config_error() (to refuse a value later, in the same form).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "config/bench_config.h"
#include "config/config.h"
#include "config/origin.h"
#include "config/prepare_config.h"
#include "core/error.h"

namespace kla {

// Error{usage} whose text is complete (several located lines): print it as it is.
struct ConfigError : Error {
  explicit ConfigError(const std::string& text) : Error(Exit::usage, text) {}
};

struct Sources {
  std::string file;                                        // the file given, empty if none
  std::vector<std::string> files;                          // every file read, includes first
  std::vector<std::string> overrides;                      // as "path=value"
  std::map<std::string, std::vector<Origin>> assignments;  // by key, in order; the last one won
  const Origin* origin_of(const std::string& path) const;  // null: built-in default
  std::string label_of(const std::string& path) const;
};

template <class Root>
struct Loaded : Sources {
  Root config;
};
using LoadedConfig = Loaded<Config>;
using LoadedPrepareConfig = Loaded<PrepareConfig>;
using LoadedBenchConfig = Loaded<BenchConfig>;

// Fragments (model presets, shared parts) leave keys out that a run needs.
enum class Completeness { complete, fragment };

// `overrides` are command-line words: key=value, --key=value, or --key followed by value.
// Throws ConfigError.
LoadedConfig load_config(const std::string& file, const std::vector<std::string>& overrides = {},
                         Completeness completeness = Completeness::complete);
LoadedPrepareConfig load_prepare_config(const std::string& file,
                                        const std::vector<std::string>& overrides = {},
                                        Completeness completeness = Completeness::complete);
LoadedBenchConfig load_bench_config(const std::string& file,
                                    const std::vector<std::string>& overrides = {},
                                    Completeness completeness = Completeness::complete);

// Keys that a run needs and the config leaves empty.
std::vector<std::string> missing_keys(const Config& config);
std::vector<std::string> missing_keys(const PrepareConfig& config);
std::vector<std::string> missing_keys(const BenchConfig& config);

// Which of the four a file is, by its top-level keys; training if in doubt. A sweep is read by
// load_sweep() (sweep_config.h).
enum class ConfigKind { training, prepare, bench, sweep };
ConfigKind kind_of_config(const std::string& file);

// A name that a key accepts, and other spellings of it; the config holds `name`.
struct Choice {
  std::string name;
  std::vector<std::string> aliases;
};
// For keys whose choices another layer owns (model.step_size.rule, ops): called before loading.
// Without it the key accepts any identifier.
void register_choices(const std::string& path, std::vector<Choice> choices);

// Refuses the value of `path` with its file, line and column, e.g. when a corpus does not fit it.
[[noreturn]] void config_error(const Sources& sources, const std::string& path,
                               const std::string& message, const std::string& note = "");

}  // namespace kla
