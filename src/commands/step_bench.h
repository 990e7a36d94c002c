// Times whole training steps of a model on made-up tokens, op by op, beside the yardsticks of the
// device: the rate of the library on the step's own products, and the rate of copying memory.
// Everything is taken in turns, so that other work on the machine slows both sides alike.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "commands/yardstick.h"
#include "config/bench_config.h"
#include "kernels/op_cost.h"

namespace kla {

// All calls of one op with one shape in a step.
struct OpTiming {
  std::string op;
  OpCost cost;        // of one call
  int64_t calls = 0;  // a step
  double best = 0;    // seconds a step, the fastest step
  double total = 0;   // seconds, all steps
};

struct StepTimings {
  int threads = 0;
  int64_t tokens = 0;           // a step
  std::vector<double> seconds;  // of each step
  double profiled_seconds = 0;  // of the steps whose ops were timed one by one, together
  std::string library;          // whose products the yardstick times
  std::vector<OpTiming> ops;    // in the order of their first call
  std::vector<ProductTiming> products;
  double copy_rate = 0;  // bytes/s
  int64_t memory_bytes = 0;
  bool memory_as_planned = false;

  double best_seconds() const;
  double median_seconds() const;
  double product_flops() const;  // of a step
  double sgemm_rate() const;     // FLOP/s: each product at the better of its two rates
  double library_rate() const;   // each product by one call of the library
  double our_rate() const;       // each product by our panels; 0 where there are none
  double share(OpKind) const;    // of the time of all steps
  double limit_seconds(const OpTiming&) const;  // a step at the yardsticks' rates
};

StepTimings time_training_steps(const BenchConfig&);

// One-token steps of recurrent decoding with `batch` rows, after a context of `position` tokens.
struct DecodeTiming {
  int64_t position = 0;
  double seconds = 0;          // a step, median
  int64_t prefilled = 0;       // tokens a row read in one go since the position before
  double prefill_seconds = 0;  // for these
};
std::vector<DecodeTiming> time_decoding(const BenchConfig&, std::vector<int64_t> positions);

}  // namespace kla
