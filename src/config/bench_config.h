// Settings of `kla bench`: the model whose ops and training step are timed. Read like the training
// config (load.h); schema.cpp lists the same fields. See configs/bench/.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/config.h"

namespace kla {

struct BenchConfig {
  ModelConfig model;
  int64_t batch = 1;       // B, samples
  int64_t seq_len = 1024;  // T, tokens a sample
  int64_t repeats = 5;     // timed runs of each entry, after one that is not timed
  DeviceConfig device;
  std::vector<std::string> ops;  // ops to time, by the names of kernels/ops.h; empty: all
  bool whole_step = true;        // also time forward, backward and update of the whole model
};

}  // namespace kla
