// What a sweep will do and how long it will take, and its array job for Slurm.
#pragma once

#include <string>
#include <vector>

#include "commands/sweep_runs.h"

namespace kla {

// Measured on this machine with the first run's config and data: a few training steps, of which the
// median counts, and a part of an evaluation.
struct StepTime {
  std::string run;
  int threads = 0, steps = 0;
  double step_seconds = 0;
  double scoring_seconds = 0;  // a validation target, all context lengths
  double flops_per_token = 0;  // of the measured model; others are scaled by theirs
  int64_t validation_targets = 0;
};
StepTime measure_step_time(const SweepRun&, int threads);

// Seconds that a run still needs: its steps and evaluations, saves not counted.
double predict_seconds(const SweepRun&, const RunStanding&, const StepTime&);

// The table of runs; `time` null: without hours.
std::string plan_table(const Sweep&, const std::vector<RunStanding>&, const StepTime* time,
                       int jobs);

// An sbatch script with one task for each run. A task that was stopped is put back into the queue.
std::string slurm_script(const Sweep&, int jobs);

// The record of what a sweep consists of, for the report: DIR/sweep.yaml.
std::string sweep_record(const Sweep&);

}  // namespace kla
