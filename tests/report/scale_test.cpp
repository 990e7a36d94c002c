#include "report/scale.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace kla::report {
namespace {

using Values = std::vector<double>;

void expect_ticks(const Scale& scale, int wanted, const Values& expected) {
  const Values ticks = scale.ticks(wanted);
  ASSERT_EQ(ticks.size(), expected.size());
  for (size_t i = 0; i < ticks.size(); ++i)
    EXPECT_NEAR(ticks[i], expected[i], 1e-9 * std::abs(expected[i]));
}

TEST(Scale, MapsEndsToPixels) {
  const Scale linear(Scale::Kind::linear, {2, 4}, 100, 300);
  EXPECT_DOUBLE_EQ(linear.pixel(2), 100);
  EXPECT_DOUBLE_EQ(linear.pixel(3.5), 250);
  const Scale upward(Scale::Kind::log10, {1, 100}, 300, 100);  // y pixels grow downwards
  EXPECT_DOUBLE_EQ(upward.pixel(10), 200);
}

TEST(Scale, TicksAreRoundNumbers) {
  expect_ticks(Scale(Scale::Kind::linear, {0, 1.05e6}, 0, 400), 5, {0, 2e5, 4e5, 6e5, 8e5, 1e6});
  expect_ticks(Scale(Scale::Kind::linear, {4.07, 4.33}, 0, 300), 5, {4.1, 4.15, 4.2, 4.25, 4.3});
  expect_ticks(Scale(Scale::Kind::linear, {-1, 1}, 0, 300), 4, {-1, -0.5, 0, 0.5, 1});
  expect_ticks(Scale(Scale::Kind::log2, {100, 9000}, 0, 400), 9,
               {128, 256, 512, 1024, 2048, 4096, 8192});
  expect_ticks(Scale(Scale::Kind::log10, {0.5, 2000}, 0, 400), 8, {1, 10, 100, 1000});
  expect_ticks(Scale(Scale::Kind::log10, {0.3, 3}, 0, 400), 8, {0.5, 1, 2});
  expect_ticks(Scale(Scale::Kind::log10, {61, 84}, 0, 400), 4, {65, 70, 75, 80});
}

TEST(Scale, PaddingKeepsLogRangesPositiveAndWidensPoints) {
  EXPECT_GT(padded({1e-3, 10}, Scale::Kind::log10, 0.1).low, 0);
  const Range point = padded({5, 5}, Scale::Kind::linear, 0.05);
  EXPECT_LT(point.low, 5);
  EXPECT_GT(point.high, 5);
}

TEST(Format, Numbers) {
  EXPECT_EQ(format_short(1048576), "1.05M");
  EXPECT_EQ(format_short(999.7), "1k");
  EXPECT_EQ(format_short(37123), "37.1k");
  EXPECT_EQ(format_short(512), "512");
  EXPECT_EQ(format_short(0.25), "0.25");
  EXPECT_EQ(format_short(std::nan("")), "–");
  EXPECT_EQ(format_exact(1234567), "1,234,567");
  EXPECT_EQ(format_exact(-123), "-123");
  EXPECT_EQ(format_context(4096), "4K");
  EXPECT_EQ(format_context(1000), "1000");
  EXPECT_EQ(format_scientific(4e-3), "4e-3");
  EXPECT_EQ(format_scientific(1.23e-5), "1.2e-5");
  EXPECT_EQ(format_tick(4.1, 0.05), "4.10");
  EXPECT_EQ(format_tick(20, 5), "20");
  EXPECT_EQ(format_time(75), "1 min 15 s");
  EXPECT_EQ(format_time(15120), "4 h 12 min");
}

}  // namespace
}  // namespace kla::report
