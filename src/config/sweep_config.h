// Settings of `kla sweep`: one base config, named variants of it, a grid of values and seeds. Read
// strictly like the other configs, with its own reader (sweep.cpp), because the keys below `grid`
// and `variants` are those of the training config:
//
//   base: ../quickstart/common.yaml
//   name: step_size
//   baseline: kla
//   grid: {run.seed: [1, 2, 3]}
//   variants:
//     kla: {model.step_size.rule: kla}
//     gdn: {model.step_size.rule: gdn}
//
// A seed s sets run.seed and data.shuffle_seed of all variants: runs with equal seeds see the same
// batches in the same order and start from the same values in every tensor they share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/load.h"

namespace kla {

struct SweepConfig {
  std::string base;                 // training config of all runs, relative to the sweep file
  std::string name;                 // of the sweep
  std::string dir = "runs/{name}";  // run directories lie below it; {name} is replaced
  std::string baseline;             // variant the others are compared with; empty: the first
  std::string references;  // CSV of published differences, relative to the sweep file; empty: none
};

struct SweepRun {
  std::string name;     // "gdn-s1", also its directory below the sweep's
  std::string variant;  // "gdn", or "gdn-lr_0.002" at a point of a grid
  uint64_t seed = 0;
  std::vector<std::string> settings;   // what makes the variant: "model.step_size.rule=gdn"
  std::vector<std::string> overrides;  // the settings and what the sweep sets: name, place, seeds
  LoadedConfig loaded;                 // the base config with them, as `kla train` reads it
};

struct Sweep {
  std::string file;
  SweepConfig config;                 // paths resolved
  std::vector<std::string> variants;  // in the order of the file, grid points expanded
  std::vector<SweepRun> runs;         // seed by seed, so that a part of a sweep is already paired
};

// Throws ConfigError.
Sweep load_sweep(const std::string& file);

}  // namespace kla
