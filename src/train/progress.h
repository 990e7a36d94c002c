// What a person sees of a run: the console line of a step, throughput and the time that is left.
#pragma once

#include <cstdint>
#include <deque>
#include <string>

#include "core/clock.h"

namespace kla {

struct ProgressLine {
  int64_t step = 0, steps = 0;
  int64_t tokens = 0;
  double loss = 0;       // nats, mean over the targets since the last line
  double grad_norm = 0;  // of the last step
  double lr = 0;
  double tokens_per_second = 0;  // 0: not known yet
  double eta_seconds = -1;       // negative: not known yet
  int64_t skipped = 0;           // steps skipped by the non-finite guard so far
};
// "step   1200/7153 16.8% | tok 2.52B | loss 3.1421 | gnorm 0.412 | lr 9.61e-04 | 812k tok/s | eta
// 4h12m"
std::string format_line(const ProgressLine&);
std::string progress_bar(int64_t done, int64_t total, int width = 24);  // "[=====>    ]"
std::string format_count(double count);                                 // 2.52B, 812k, 37
std::string format_duration(double seconds);                            // 4h12m, 3m07s, 12s

// Rates over a sliding window of steps, with evaluations and saves included in the ETA.
class Stopwatch {
 public:
  void start(int64_t tokens);
  void step_done(int64_t tokens, double step_seconds);
  double tokens_per_second() const;  // of the steps in the window, training time only
  double eta_seconds(
      int64_t tokens_left) const;  // from wall time over the window; negative: unknown
  double seconds_since_start() const;

 private:
  struct Mark {
    Clock::time_point time;
    int64_t tokens;
    double busy;  // seconds of training steps so far
  };
  static constexpr size_t kWindow = 100;  // steps
  std::deque<Mark> marks_;
  Clock::time_point start_ = Clock::now();
  double busy_ = 0;
};

}  // namespace kla
