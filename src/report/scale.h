// From data to pixels: linear and logarithmic scales, ticks at round numbers, numbers as text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kla::report {

struct Range {
  double low = 0, high = 0;
  bool valid() const { return low <= high; }
  void include(double value);  // NaN and infinities are left out
};
inline constexpr Range kEmptyRange{1, 0};

class Scale {
 public:
  enum class Kind { linear, log2, log10 };
  // Maps `range` to [first, last] pixels; a logarithmic range must be positive.
  Scale(Kind kind, Range range, double first, double last);

  double pixel(double value) const;
  // Round numbers inside the range, about `wanted` of them (powers of two for log2).
  std::vector<double> ticks(int wanted) const;
  Range range() const { return range_; }

 private:
  Kind kind_;
  Range range_;
  double first_, last_;
};

// A range with `share` of its width added at both ends, as the scale sees it; never of zero width.
Range padded(Range range, Scale::Kind kind, double share);

std::string format_fixed(double value, int decimals);  // "12.30", "-" for NaN
std::string format_tick(double value, double step);    // as many decimals as the step needs
std::string format_short(double value);                // 3 digits, k M B T: "1.05M", "512"
std::string format_exact(int64_t value);               // "1,048,576"
std::string format_context(double length);             // "512", "4K", "64K": powers of two
std::string format_scientific(double value);           // "4e-3", "1.2e-05" shortened
std::string format_time(double seconds);               // "4 h 12 min", "3 min 7 s", "12 s"

}  // namespace kla::report
