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

// Over a twentieth of the points: how every curve of a training is drawn.
std::vector<Point> smoothed(const std::vector<Point>& points);

// At most the lowest and the highest point of each pixel column, in their order, so that a spike of
// a single point survives any reduction. `column` maps x to its column.
std::vector<Point> reduce_to_columns(const std::vector<Point>& points,
                                     const std::function<int64_t(double)>& column);

// The mean of the curves of several runs, as far as all of them go and have points at about the
// same x: closer than half a step. (Seeds meet the short last window of the data at different
// steps.)
std::vector<Point> mean_curve(const std::vector<std::vector<Point>>& curves);

double median(std::vector<double> values);  // NaN if empty

// Student's t distribution with `df` > 0 degrees of freedom.
double student_t_cdf(double t, double df);
double student_t_quantile(double p, double df);  // p in (0, 1)

struct MeanInterval {
  double mean = 0;                   // NaN of no values
  std::optional<double> half_width;  // Student t; none with fewer than 3 values
};
// Mean of independent values with its two-sided interval, mean +- half_width.
MeanInterval mean_interval(const std::vector<double>& values, double confidence = 0.95);

}  // namespace kla::report
