#include "train/progress.h"

#include <gtest/gtest.h>

namespace kla {
namespace {

TEST(Progress, LineHasTheColumnsOfTheFormatPage) {
  EXPECT_EQ(format_line({.step = 1200,
                         .steps = 7153,
                         .tokens = 2516582400,
                         .loss = 3.1421,
                         .grad_norm = 0.412,
                         .lr = 9.61e-4,
                         .tokens_per_second = 812000,
                         .eta_seconds = 4 * 3600 + 12 * 60,
                         .skipped = 0}),
            "step 1200/7153  16.8% | tok   2.52B | loss  3.1421 | gnorm  0.412 | lr 9.61e-04 | "
            "812.0k tok/s | eta 4h12m");
  const std::string widest = format_line({.step = 7153,
                                          .steps = 7153,
                                          .tokens = 990000000000,
                                          .loss = 11.25,
                                          .grad_norm = 123.456,
                                          .lr = 1e-3,
                                          .tokens_per_second = 812000,
                                          .eta_seconds = 1e6,
                                          .skipped = 99});
  EXPECT_LE(widest.size(), 120u) << widest;
}

TEST(Progress, CountsAndDurations) {
  EXPECT_EQ(format_count(37), "37");
  EXPECT_EQ(format_count(65536), "65.5k");
  EXPECT_EQ(format_count(15e9), "15.00B");
  EXPECT_EQ(format_duration(12), "12s");
  EXPECT_EQ(format_duration(187), "3m07s");
  EXPECT_EQ(format_duration(15120), "4h12m");
  EXPECT_EQ(progress_bar(1, 2, 4), "[==> ]");
}

TEST(Stopwatch, UnknownBeforeTheFirstStep) {
  Stopwatch watch;
  watch.start(1000);
  EXPECT_LT(watch.eta_seconds(10), 0);
  EXPECT_EQ(watch.tokens_per_second(), 0);
  watch.step_done(3000, 0.5);
  EXPECT_DOUBLE_EQ(watch.tokens_per_second(), 4000);
  EXPECT_GE(watch.eta_seconds(10), 0);
}

}  // namespace
}  // namespace kla
