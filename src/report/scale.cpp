#include "report/scale.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>

namespace kla::report {
namespace {

double transform(Scale::Kind kind, double value) {
  switch (kind) {
    case Scale::Kind::log2:
      return std::log2(value);
    case Scale::Kind::log10:
      return std::log10(value);
    case Scale::Kind::linear:
      break;
  }
  return value;
}

double inverse(Scale::Kind kind, double value) {
  switch (kind) {
    case Scale::Kind::log2:
      return std::exp2(value);
    case Scale::Kind::log10:
      return std::pow(10, value);
    case Scale::Kind::linear:
      break;
  }
  return value;
}

std::string print(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

// The 1, 2 or 5 times a power of ten nearest to width / wanted.
double round_step(double width, int wanted) {
  const double raw = width / std::max(wanted, 1);
  const double power = std::pow(10, std::floor(std::log10(raw)));
  const double lead = raw / power;  // 1 to 10; the bounds are geometric means of the neighbours
  return power * (lead < std::sqrt(2.0)    ? 1
                  : lead < std::sqrt(10.0) ? 2
                  : lead < std::sqrt(50.0) ? 5
                                           : 10);
}

std::vector<double> linear_ticks(Range range, int wanted) {
  std::vector<double> ticks;
  const double step = round_step(range.high - range.low, wanted);
  const double slack = 1e-9 * step;
  for (double i = std::ceil((range.low - slack) / step); i * step <= range.high + slack; ++i)
    ticks.push_back(i * step + 0.0);  // + 0.0: no negative zero
  return ticks;
}

// Powers of the base, thinned to about `wanted`.
std::vector<double> power_ticks(Scale::Kind kind, Range range, int wanted) {
  const double low = std::ceil(transform(kind, range.low) - 1e-9);
  const double high = std::floor(transform(kind, range.high) + 1e-9);
  const double step = std::max(1.0, std::ceil((high - low + 1) / std::max(wanted, 1)));
  std::vector<double> ticks;
  for (double i = low; i <= high; i += step) ticks.push_back(inverse(kind, i));
  return ticks;
}

// 1, 2 and 5 times the powers of ten inside the range.
std::vector<double> one_two_five_ticks(Range range) {
  std::vector<double> ticks;
  for (double power = std::floor(std::log10(range.low)); power <= std::log10(range.high); ++power)
    for (double factor : {1.0, 2.0, 5.0}) {
      const double tick = factor * std::pow(10, power);
      if (tick >= range.low * (1 - 1e-9) && tick <= range.high * (1 + 1e-9)) ticks.push_back(tick);
    }
  return ticks;
}

std::string trim_zeros(std::string text) {
  if (text.find('.') == std::string::npos) return text;
  while (text.back() == '0') text.pop_back();
  if (text.back() == '.') text.pop_back();
  return text;
}

}  // namespace

void Range::include(double value) {
  if (!std::isfinite(value)) return;
  if (!valid()) low = high = value;
  low = std::min(low, value);
  high = std::max(high, value);
}

Scale::Scale(Kind kind, Range range, double first, double last)
    : kind_(kind), range_(range), first_(first), last_(last) {}

double Scale::pixel(double value) const {
  const double low = transform(kind_, range_.low), high = transform(kind_, range_.high);
  return first_ + (transform(kind_, value) - low) / (high - low) * (last_ - first_);
}

std::vector<double> Scale::ticks(int wanted) const {
  if (kind_ == Kind::linear) return linear_ticks(range_, wanted);
  std::vector<double> ticks = power_ticks(kind_, range_, wanted);
  if (kind_ == Kind::log2 || ticks.size() >= 3) return ticks;
  ticks = one_two_five_ticks(range_);
  return ticks.size() >= 3 ? ticks : linear_ticks(range_, wanted);
}

Range padded(Range range, Scale::Kind kind, double share) {
  double low = transform(kind, range.low), high = transform(kind, range.high);
  if (high - low < 1e-12 * std::max(1.0, std::abs(high))) {
    const double half = kind == Scale::Kind::linear ? std::max(0.5 * std::abs(high), 1e-6) : 0.5;
    low -= half;
    high += half;
  }
  const double margin = share * (high - low);
  return {inverse(kind, low - margin), inverse(kind, high + margin)};
}

std::string format_fixed(double value, int decimals) {
  if (std::isnan(value)) return "–";
  char text[400];
  std::snprintf(text, sizeof text, "%.*f", decimals, value);
  return text;
}

std::string format_tick(double value, double step) {
  const int decimals = std::clamp(static_cast<int>(std::ceil(-std::log10(step) - 1e-9)), 0, 9);
  return format_fixed(value, decimals);
}

std::string format_short(double value) {
  if (std::isnan(value)) return "–";
  static constexpr const char* kUnits[] = {"", "k", "M", "B", "T"};
  int unit = 0;
  while (std::abs(value) >= 999.5 && unit < 4) {
    value /= 1000;
    ++unit;
  }
  const int decimals = std::abs(value) >= 99.95 ? 0 : std::abs(value) >= 9.995 ? 1 : 2;
  return trim_zeros(format_fixed(value, decimals)) + kUnits[unit];
}

std::string format_exact(int64_t value) {
  std::string text = std::to_string(value);
  const size_t sign = value < 0 ? 1 : 0;
  for (size_t i = text.size(); i > 3 + sign; i -= 3) text.insert(i - 3, 1, ',');
  return text;
}

std::string format_context(double length) {
  if (length >= 1024 && std::fmod(length, 1024) == 0) return format_fixed(length / 1024, 0) + "K";
  return trim_zeros(print("%.6g", length));
}

std::string format_scientific(double value) {
  std::string text = print("%.1e", value);
  const size_t e = text.find('e');
  if (e == std::string::npos) return text;
  return trim_zeros(text.substr(0, e)) + "e" + std::to_string(std::stoi(text.substr(e + 1)));
}

std::string format_time(double seconds) {
  if (!std::isfinite(seconds)) return "–";
  const auto s = static_cast<int64_t>(std::llround(seconds));
  if (s >= 3600) return std::to_string(s / 3600) + " h " + std::to_string(s % 3600 / 60) + " min";
  if (s >= 60) return std::to_string(s / 60) + " min " + std::to_string(s % 60) + " s";
  return std::to_string(s) + " s";
}

}  // namespace kla::report
