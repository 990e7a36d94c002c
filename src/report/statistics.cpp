#include "report/statistics.h"

#include <algorithm>
#include <array>
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

double median(std::vector<double> values) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

MeanInterval mean_interval(const std::vector<double>& values) {
  // 97.5 % quantiles of Student's t for 2, 3, ... degrees of freedom; beyond them the last one,
  // which is a little too wide, never too narrow.
  static constexpr std::array<double, 19> kT = {4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306,
                                                2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
                                                2.120, 2.110, 2.101, 2.093, 2.086};
  const auto n = static_cast<double>(values.size());
  double sum = 0, squares = 0;
  for (double value : values) sum += value;
  MeanInterval result{sum / n, std::nullopt};
  if (values.size() < 3) return result;
  for (double value : values) squares += (value - result.mean) * (value - result.mean);
  const double t = kT[std::min(values.size() - 3, kT.size() - 1)];
  result.half_width = t * std::sqrt(squares / (n - 1) / n);
  return result;
}

}  // namespace kla::report
