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
  EXPECT_NEAR(three.half_width.value(), 4.303 / std::sqrt(3.0), 1e-12);
}

}  // namespace
}  // namespace kla::report
