// Numbers behind the figures: smoothing, down-sampling, means and intervals.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "report/scale.h"

namespace kla::report {

struct Point {
  double x = 0, y = 0;  // y NaN: a gap in the line
};

// Exponential moving average over about `window` points, but at first over no more than a tenth of
// those seen, so that it does not lag behind the steep start. Gaps stay gaps and do not enter.
std::vector<Point> moving_average(const std::vector<Point>& points, double window);

// At most the lowest and the highest point of each pixel column, in their order, so that a spike of
// a single point survives any reduction. `column` maps x to its column.
std::vector<Point> reduce_to_columns(const std::vector<Point>& points,
                                     const std::function<int64_t(double)>& column);

double median(std::vector<double> values);  // NaN if empty

struct MeanInterval {
  double mean = 0;
  std::optional<double> half_width;  // 95 %, Student t; none with fewer than 3 values
};
MeanInterval mean_interval(const std::vector<double>& values);

}  // namespace kla::report
