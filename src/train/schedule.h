// Learning-rate schedules: pure functions of the tokens trained on, so nothing has to be saved.
#pragma once

#include <cstdint>

#include "config/config.h"

namespace kla {

// The learning rate of the step that ends at `tokens` (the count after it). With W = warmup_tokens,
// E = max_tokens, r = min_lr_ratio, all times optim.lr:
//   warm-up   tokens / W                                     while tokens < W
//   cosine    r + (1 - r) (1 + cos(pi (tokens - W) / (E - W))) / 2
//   constant  1
//   wsd       1, then linear from 1 to r over the last decay_tokens
double learning_rate(const Config& config, int64_t tokens);

}  // namespace kla
