#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace kla {

double learning_rate(const Config& config, int64_t tokens) {
  const ScheduleConfig& s = config.schedule;
  const double peak = config.optim.lr, floor = s.min_lr_ratio;
  const auto at = static_cast<double>(tokens), warmup = static_cast<double>(s.warmup_tokens);
  const auto end = static_cast<double>(config.train.max_tokens);
  if (at < warmup) return peak * at / warmup;
  if (s.name == "cosine") {
    const double share = end > warmup ? std::min(1.0, (at - warmup) / (end - warmup)) : 1.0;
    return peak * (floor + (1 - floor) * 0.5 * (1 + std::cos(std::numbers::pi * share)));
  }
  if (s.name == "wsd" && s.decay_tokens > 0) {
    const auto decay = static_cast<double>(s.decay_tokens);
    const double share = std::clamp((at - (end - decay)) / decay, 0.0, 1.0);
    return peak * (1 - (1 - floor) * share);
  }
  return peak;
}

}  // namespace kla
