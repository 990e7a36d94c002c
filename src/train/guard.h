// The non-finite guard: a step whose loss or gradient norm is NaN or infinite never reaches the
// weights.
#pragma once

#include <cstdint>

#include "config/config.h"

namespace kla {

struct GuardState {
  int64_t consecutive = 0;  // skipped steps in a row
  int64_t total = 0;        // skipped steps of the run

  bool operator==(const GuardState&) const = default;
};

// Counts a step. Error{numerical} (exit 5) when the policy is `stop` or a limit is passed.
void record_step(GuardState& state, const NonfiniteConfig& config, bool finite, int64_t step);

}  // namespace kla
