// The frozen config: every value of a run in one file, with where it came from as comments. Loading
// it gives the same struct bit for bit. The hash names what decides the result of a run.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config/load.h"

namespace kla {

std::string freeze(const LoadedConfig& loaded);
std::string freeze(const LoadedPrepareConfig& loaded);
std::string freeze(const LoadedBenchConfig& loaded);

// SHA-256 of the sorted "path = value" lines of every key that can change the result.
std::string config_hash(const Config& config);
std::string config_hash(const PrepareConfig& config);

// First line of a frozen file, and the comment of one of its lines. A loaded frozen file shows
// these instead of its own places, so that freezing it again gives the same text.
inline constexpr std::string_view kFrozenHeader = "# Frozen config of kla, format 1.";
std::string frozen_comment(std::string_view line);

// Every key with its value in YAML spelling, in the order of the schema.
std::vector<std::pair<std::string, std::string>> config_values(const Config& config);

struct ConfigDifference {
  std::string path;
  std::string before, after;  // YAML spelling
  bool safe;  // cannot change the result: names, intervals, threads; may differ on resume
};
std::vector<ConfigDifference> diff_configs(const Config& before, const Config& after);

}  // namespace kla
