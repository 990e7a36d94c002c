#include "train/progress.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace kla {

std::string format_count(double count) {
  char text[32];
  if (count >= 1e12) {
    std::snprintf(text, sizeof(text), "%.2fT", count / 1e12);
  } else if (count >= 1e9) {
    std::snprintf(text, sizeof(text), "%.2fB", count / 1e9);
  } else if (count >= 1e6) {
    std::snprintf(text, sizeof(text), "%.2fM", count / 1e6);
  } else if (count >= 1e4) {
    std::snprintf(text, sizeof(text), "%.1fk", count / 1e3);
  } else {
    std::snprintf(text, sizeof(text), "%.0f", count);
  }
  return text;
}

std::string format_duration(double seconds) {
  const auto s = static_cast<long long>(std::llround(std::max(0.0, seconds)));
  char text[32];
  if (s >= 86400) {
    std::snprintf(text, sizeof(text), "%lldd%02lldh", s / 86400, s / 3600 % 24);
  } else if (s >= 3600) {
    std::snprintf(text, sizeof(text), "%lldh%02lldm", s / 3600, s / 60 % 60);
  } else if (s >= 60) {
    std::snprintf(text, sizeof(text), "%lldm%02llds", s / 60, s % 60);
  } else {
    std::snprintf(text, sizeof(text), "%llds", s);
  }
  return text;
}

std::string format_line(const ProgressLine& p) {
  char text[160];
  const int width = std::snprintf(nullptr, 0, "%lld", static_cast<long long>(p.steps));
  std::snprintf(text, sizeof(text),
                "step %*lld/%lld %5.1f%% | tok %7s | loss %7.4f | gnorm %6.3f | lr %.2e", width,
                static_cast<long long>(p.step), static_cast<long long>(p.steps),
                100.0 * static_cast<double>(p.step) / static_cast<double>(p.steps),
                format_count(static_cast<double>(p.tokens)).c_str(), p.loss, p.grad_norm, p.lr);
  std::string line = text;
  if (p.tokens_per_second > 0) line += " | " + format_count(p.tokens_per_second) + " tok/s";
  if (p.eta_seconds >= 0) line += " | eta " + format_duration(p.eta_seconds);
  if (p.skipped > 0) line += " | skip " + std::to_string(p.skipped);
  return line;
}

std::string progress_bar(int64_t done, int64_t total, int width) {
  const double share = total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 1;
  const int full = static_cast<int>(share * width);
  std::string bar = "[";
  for (int i = 0; i < width; ++i) bar += i < full ? '=' : i == full ? '>' : ' ';
  return bar + "]";
}

void Stopwatch::start(int64_t tokens) {
  start_ = Clock::now();
  busy_ = 0;
  marks_.assign(1, {start_, tokens, 0});
}

void Stopwatch::step_done(int64_t tokens, double step_seconds) {
  busy_ += step_seconds;
  marks_.push_back({Clock::now(), tokens, busy_});
  if (marks_.size() > kWindow + 1) marks_.pop_front();
}

double Stopwatch::tokens_per_second() const {
  const double busy = marks_.back().busy - marks_.front().busy;
  return busy > 0 ? static_cast<double>(marks_.back().tokens - marks_.front().tokens) / busy : 0;
}

double Stopwatch::eta_seconds(int64_t tokens_left) const {
  const auto tokens = static_cast<double>(marks_.back().tokens - marks_.front().tokens);
  if (tokens <= 0) return -1;
  const double wall =
      std::chrono::duration<double>(marks_.back().time - marks_.front().time).count();
  return wall * static_cast<double>(tokens_left) / tokens;
}

double Stopwatch::seconds_since_start() const {
  return seconds_since(start_);
}

}  // namespace kla
