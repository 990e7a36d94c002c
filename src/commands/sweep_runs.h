// The runs of a sweep: where each stands, read from its run directory and from nothing else, and
// their execution by child processes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/sweep_config.h"
#include "report/run_reader.h"

namespace kla {

struct RunStanding {
  report::RunState state = report::RunState::fresh;
  int64_t step = 0, steps = 0;
  std::string why;     // it failed
  bool done() const {  // nothing to do: a divergence is a result, the same again would diverge too
    return state == report::RunState::finished || state == report::RunState::diverged;
  }
};
std::string describe(const RunStanding&);  // "unfinished, step 120 of 600"

// Error{usage} if its directory was started with another config, naming the keys.
RunStanding standing_of(const SweepRun&);
std::vector<RunStanding> standings_of(const Sweep&);

// Runs `kla train` for every run that is not done, `jobs` at a time, each with its share of the
// cores. A run that fails leaves the others alone. A signal is forwarded: the runs save and stop.
// Returns the exit code: 75 if stopped, else that of the first run which failed or diverged, else
// 0. The caller holds the sweep's lock and a SignalGuard.
int execute(const Sweep&, int jobs);

// The words after `kla` that execute a run; `threads` 0: one a core.
std::vector<std::string> train_words(const Sweep&, const SweepRun&, int threads);

}  // namespace kla
