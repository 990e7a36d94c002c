// What the report knows of a run: the files of its run directory, read as they are. A missing file
// or a torn line costs a note, never the page; only a directory without any metrics is refused.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace kla::report {

inline constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();

// One logged step; NaN where a row lacks the field or holds a non-finite value.
struct TrainRow {
  int64_t step = 0;
  double tokens = 0;     // target tokens trained on so far
  double time = 0;       // Unix seconds
  double loss = 0;       // nats, mean over the targets since the row before
  double grad_norm = 0;  // before clipping
  double lr = 0;
  double tok_s = 0;
  double skipped = 0;    // steps skipped by the non-finite guard so far
  bool resumed = false;  // first row after a resume: the time before it was not training
};

struct EvalRow {
  int64_t step = 0;
  double tokens = 0;
  int64_t length = 0;        // context length
  double loss = 0;           // nats a target
  double low = 0, high = 0;  // 95 % interval of the loss over documents; NaN if not given
  double bits_per_byte = 0;  // NaN if not given
  int64_t targets = 0;
  std::string protocol = "full";  // full: every real target once | kla_release_...
};

// One quantity inside the mixer of a layer: quantiles over tokens (or chunks) and heads.
struct ProbeValues {
  std::string name;  // "write_gain"
  double count = 0;  // values behind the quantiles
  double low = 0, lower = 0, median = 0, upper = 0, high = 0, most = 0;  // 5 25 50 75 95 100 %
};

struct ProbeRow {
  double tokens = 0;
  int64_t layer = 0;
  std::vector<ProbeValues> values;
};

using KeyValues = std::vector<std::pair<std::string, std::string>>;  // dotted key, value as text

struct RunData {
  std::string name;
  std::string directory;
  std::string variant;      // of a sweep; empty: found by comparing configs
  KeyValues config;         // config.yaml, flattened
  std::string config_text;  // as it stands in the directory
  KeyValues record;         // run.json, flattened
  KeyValues status;         // status.json, flattened
  std::vector<TrainRow> train;
  std::vector<EvalRow> evals;
  std::vector<ProbeRow> probes;    // none unless log.probe_interval_steps was set
  std::vector<std::string> notes;  // what was missing or could not be read
};

// Where a run stands, by its status.json; none: `fresh`.
enum class RunState { fresh, unfinished, finished, diverged, failed };
RunState state_of(const KeyValues& status);
const char* name_of(RunState);  // "not started", "unfinished", ...

// A JSON object as dotted keys; empty if there is no such file or no object in it.
KeyValues read_flat_json(const std::string& path);

// Error{data} if `directory` is not a run directory.
RunData read_run(const std::string& directory);

// The value of `key`, or "" if there is none.
std::string value_of(const KeyValues& values, const std::string& key);

// The block mappings of a frozen config as "section.key" -> value, comments dropped.
KeyValues parse_frozen_config(const std::string& text);

}  // namespace kla::report
