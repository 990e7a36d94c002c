#include "report/statistics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace kla::report {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

TEST(Statistics, DownSamplingKeepsEverySpike) {
  std::vector<Point> points;
  for (int i = 0; i < 100000; ++i) points.push_back({double(i), i % 2 ? 1.0 : 2.0});
  points[12345].y = 99;
  points[54321].y = -99;
  const auto reduced =
      reduce_to_columns(points, [](double x) { return static_cast<int64_t>(x / 200); });
  EXPECT_LE(reduced.size(), 2u * 500u);
  auto holds = [&](double y) {
    return std::any_of(reduced.begin(), reduced.end(), [&](const Point& p) { return p.y == y; });
  };
  EXPECT_TRUE(holds(99));
  EXPECT_TRUE(holds(-99));
  EXPECT_TRUE(std::is_sorted(reduced.begin(), reduced.end(),
                             [](const Point& a, const Point& b) { return a.x < b.x; }));
}

TEST(Statistics, DownSamplingKeepsGaps) {
  const std::vector<Point> points = {{0, 1}, {1, kNaN}, {2, 3}, {10, 4}, {20, kNaN}, {30, 5}};
  const auto reduced =
      reduce_to_columns(points, [](double x) { return static_cast<int64_t>(x / 10); });
  ASSERT_EQ(reduced.size(), 6u);
  EXPECT_EQ(reduced[0].y, 1);
  EXPECT_EQ(reduced[1].y, 3);
  EXPECT_TRUE(std::isnan(reduced[2].y));  // the gap inside the first column
  EXPECT_EQ(reduced[3].y, 4);
  EXPECT_TRUE(std::isnan(reduced[4].y));
  EXPECT_EQ(reduced[5].y, 5);
}

TEST(Statistics, MovingAverage) {
  const auto flat = moving_average({{0, 3}, {1, 3}, {2, kNaN}, {3, 3}}, 10);
  EXPECT_EQ(flat[1].y, 3);
  EXPECT_TRUE(std::isnan(flat[2].y));
  EXPECT_EQ(flat[3].y, 3);
  std::vector<Point> steps;
  for (int i = 0; i < 1000; ++i) steps.push_back({double(i), i < 500 ? 0.0 : 1.0});
  const auto average = moving_average(steps, 20);
  EXPECT_EQ(average[499].y, 0);
  EXPECT_GT(average[505].y, 0.3);
  EXPECT_LT(average[505].y, 0.7);
  EXPECT_NEAR(average[600].y, 1, 1e-4);
  const auto untouched = moving_average(steps, 1);
  EXPECT_EQ(untouched[500].y, 1);
}

TEST(Statistics, MedianAndInterval) {
  EXPECT_TRUE(std::isnan(median({})));
  EXPECT_EQ(median({3, 1, 2}), 2);
  EXPECT_EQ(median({4, 1, 3, 2}), 2.5);
  EXPECT_FALSE(mean_interval({1, 2}).half_width.has_value());
  const MeanInterval three = mean_interval({1, 2, 3});
  EXPECT_EQ(three.mean, 2);
  EXPECT_NEAR(three.half_width.value(), 0.95 * std::sqrt(2 / 0.0975 / 3), 1e-12);
  EXPECT_NEAR(mean_interval({1, 2, 3}, 0.99).half_width.value(), 0.99 * std::sqrt(2 / 0.0199 / 3),
              1e-12);
}

TEST(Statistics, StudentTQuantilesEqualTheTables) {
  const struct {
    double p, df, t;
  } rows[] = {{0.975, 1, 12.7062},   {0.975, 2, 4.30265},  {0.975, 3, 3.18245},
              {0.975, 4, 2.77645},   {0.975, 5, 2.57058},  {0.975, 9, 2.26216},
              {0.975, 10, 2.22814},  {0.975, 20, 2.08596}, {0.975, 30, 2.04227},
              {0.975, 120, 1.97993}, {0.995, 2, 9.92484},  {0.995, 9, 3.24984},
              {0.95, 4, 2.13185},    {0.9, 1, 3.07768},    {0.9995, 3, 12.9240},
              {0.9995, 10, 4.58689}, {0.975, 1e7, 1.95996}};
  for (const auto& [p, df, t] : rows) {
    EXPECT_NEAR(student_t_quantile(p, df) / t, 1, 5e-6) << p << " " << df;
    EXPECT_NEAR(student_t_quantile(1 - p, df) / -t, 1, 5e-6) << p << " " << df;
  }
}

// df 1 is Cauchy's distribution, df 2 has a closed form too.
TEST(Statistics, StudentTHasItsClosedForms) {
  for (const double t : {-1e6, -30.0, -2.0, -0.1, 0.0, 1e-9, 0.5, 1.0, 7.0, 1e4}) {
    EXPECT_NEAR(student_t_cdf(t, 1), 0.5 + std::atan(t) / M_PI, 1e-14) << t;
    EXPECT_NEAR(student_t_cdf(t, 2), 0.5 + t / (2 * std::sqrt(2 + t * t)), 1e-14) << t;
  }
  for (const double p : {1e-6, 0.01, 0.3, 0.5, 0.7, 0.99, 1 - 1e-6})
    for (const double df : {1.0, 2.0, 3.0, 9.0, 50.0})
      EXPECT_NEAR(student_t_cdf(student_t_quantile(p, df), df), p, 1e-14) << p << " " << df;
}

TEST(Statistics, MeanCurveGoesAsFarAsAllDo) {
  const std::vector<Point> a = {{10, 1}, {20, 2}, {30, 3}}, b = {{10, 3}, {21, 4}},
                           c = {{10, 1}, {28, 2}, {30, 3}};
  const auto mean = mean_curve({a, b});
  ASSERT_EQ(mean.size(), 2u);
  EXPECT_EQ(mean[1].x, 20);
  EXPECT_EQ(mean[1].y, 3);
  EXPECT_EQ(mean_curve({a, c}).size(), 1u);  // 28 is another place than 20
  EXPECT_TRUE(mean_curve({}).empty());
}

}  // namespace
}  // namespace kla::report
