#include "report/statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace kla::report {

std::vector<Point> moving_average(const std::vector<Point>& points, double window) {
  double mean = 0, seen = 0;
  std::vector<Point> average;
  average.reserve(points.size());
  for (const Point& point : points) {
    if (std::isfinite(point.y)) {
      mean += (point.y - mean) * 2 / (1 + std::min(window, 1 + seen / 10));
      ++seen;
    }
    average.push_back({point.x, std::isfinite(point.y) ? mean : point.y});
  }
  return average;
}

std::vector<Point> smoothed(const std::vector<Point>& points) {
  return moving_average(points, std::max(1.0, 0.05 * static_cast<double>(points.size())));
}

std::vector<Point> reduce_to_columns(const std::vector<Point>& points,
                                     const std::function<int64_t(double)>& column) {
  std::vector<Point> reduced;
  size_t begin = 0;
  while (begin < points.size()) {
    const int64_t here = column(points[begin].x);
    size_t end = begin, low = begin, high = begin;
    bool gap = false;
    for (; end < points.size() && column(points[end].x) == here; ++end) {
      const double y = points[end].y;
      if (!std::isfinite(y)) gap = true;
      if (y < points[low].y || !std::isfinite(points[low].y)) low = end;
      if (y > points[high].y || !std::isfinite(points[high].y)) high = end;
    }
    reduced.push_back(points[std::min(low, high)]);
    if (low != high) reduced.push_back(points[std::max(low, high)]);
    if (gap && std::isfinite(reduced.back().y))
      reduced.push_back({points[end - 1].x, std::numeric_limits<double>::quiet_NaN()});
    begin = end;
  }
  return reduced;
}

std::vector<Point> mean_curve(const std::vector<std::vector<Point>>& curves) {
  std::vector<Point> mean;
  if (curves.empty()) return mean;
  const std::vector<Point>& first = curves.front();
  for (size_t i = 0; i < first.size(); ++i) {
    const double step = std::abs(first[i].x - (i > 0 ? first[i - 1].x : 0));
    double sum = 0;
    for (const std::vector<Point>& points : curves) {
      if (i >= points.size() || std::abs(points[i].x - first[i].x) > step / 2) return mean;
      sum += points[i].y;
    }
    mean.push_back({first[i].x, sum / static_cast<double>(curves.size())});
  }
  return mean;
}

double median(std::vector<double> values) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

namespace {

// The continued fraction of the incomplete beta function (DLMF 8.17.22), by the modified Lentz
// method; it converges fast for x < (a + 1) / (a + b + 2).
double beta_fraction(double x, double a, double b) {
  constexpr double kTiny = 1e-300, kEnough = 1e-16;
  const auto away_from_zero = [](double v) { return std::abs(v) < kTiny ? kTiny : v; };
  double c = 1, d = 1 / away_from_zero(1 - (a + b) * x / (a + 1));
  double fraction = d;
  for (int m = 1; m < 10000; ++m) {
    const double two = 2.0 * m;
    const double even = m * (b - m) * x / ((a + two - 1) * (a + two));
    const double odd = -(a + m) * (a + b + m) * x / ((a + two) * (a + two + 1));
    double change = 1;
    for (const double term : {even, odd}) {
      d = 1 / away_from_zero(1 + term * d);
      c = away_from_zero(1 + term / c);
      change = c * d;
      fraction *= change;
    }
    if (std::abs(change - 1) < kEnough) break;
  }
  return fraction;
}

// I_x(a, b), the regularised incomplete beta function; y = 1 - x, given for accuracy near x = 1.
double incomplete_beta(double x, double y, double a, double b) {
  if (x <= 0) return 0;
  if (y <= 0) return 1;
  if (x > (a + 1) / (a + b + 2) && y < (b + 1) / (a + b + 2))
    return 1 - incomplete_beta(y, x, b, a);
  const double front = std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) +
                                a * std::log(x) + b * std::log(y));
  return front * beta_fraction(x, a, b) / a;
}

}  // namespace

double student_t_cdf(double t, double df) {
  const double square = t * t, sum = df + square;
  if (square > df) {  // far out: the tail itself
    const double tail = incomplete_beta(df / sum, square / sum, df / 2, 0.5) / 2;
    return t > 0 ? 1 - tail : tail;
  }
  const double middle = incomplete_beta(square / sum, df / sum, 0.5, df / 2) / 2;
  return t > 0 ? 0.5 + middle : 0.5 - middle;
}

double student_t_quantile(double p, double df) {
  if (p == 0.5) return 0;
  if (p < 0.5) return -student_t_quantile(1 - p, df);
  double low = 0, high = 1;
  while (student_t_cdf(high, df) < p) high *= 2;
  for (int halving = 0; halving < 200 && low < high; ++halving) {
    const double middle = low + (high - low) / 2;
    if (middle == low || middle == high) break;
    (student_t_cdf(middle, df) < p ? low : high) = middle;
  }
  return high;
}

MeanInterval mean_interval(const std::vector<double>& values, double confidence) {
  const auto n = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (double value : values) sum += value;
  MeanInterval result{sum / n, std::nullopt};
  if (values.size() < 3) return result;
  for (double value : values) squares += (value - result.mean) * (value - result.mean);
  const double t = student_t_quantile((1 + confidence) / 2, n - 1);
  result.half_width = t * std::sqrt(squares / (n - 1) / n);
  return result;
}

}  // namespace kla::report
