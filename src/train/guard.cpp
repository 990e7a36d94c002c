#include "train/guard.h"

#include <string>

#include "core/error.h"

namespace kla {

void record_step(GuardState& state, const NonfiniteConfig& config, bool finite, int64_t step) {
  if (finite) {
    state.consecutive = 0;
    return;
  }
  ++state.consecutive;
  ++state.total;
  const bool stop = config.policy == "stop" || state.consecutive >= config.max_consecutive ||
                    state.total >= config.max_total;
  if (!stop) return;
  throw Error(Exit::numerical,
              "step " + std::to_string(step) + ": loss or gradient norm is not finite (" +
                  std::to_string(state.consecutive) + " in a row, " + std::to_string(state.total) +
                  " in all)",
              "lower optim.lr, or continue from an earlier checkpoint; the last one is intact");
}

}  // namespace kla
