// Learning rates against values worked out by hand.
#include "train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace kla::testing {
namespace {

Config config(const std::string& name, double min_lr_ratio = 0.1) {
  Config c;
  c.optim.lr = 2e-3;
  c.train.max_tokens = 1100;
  c.schedule.name = name;
  c.schedule.warmup_tokens = 100;
  c.schedule.min_lr_ratio = min_lr_ratio;
  c.schedule.decay_tokens = 200;
  return c;
}

TEST(Schedule, WarmUpIsLinearFromZero) {
  for (const char* name : {"cosine", "constant", "wsd"}) {
    EXPECT_DOUBLE_EQ(learning_rate(config(name), 1), 2e-5) << name;
    EXPECT_DOUBLE_EQ(learning_rate(config(name), 50), 1e-3) << name;
    EXPECT_DOUBLE_EQ(learning_rate(config(name), 100), 2e-3) << name;
  }
}

TEST(Schedule, Cosine) {
  const Config c = config("cosine");
  EXPECT_DOUBLE_EQ(learning_rate(c, 600), 2e-3 * 0.55);  // half way: the mean of 1 and 0.1
  EXPECT_DOUBLE_EQ(learning_rate(c, 350), 2e-3 * (0.1 + 0.45 * (1 + std::sqrt(0.5))));  // a quarter
  EXPECT_DOUBLE_EQ(learning_rate(c, 1100), 2e-4);
  EXPECT_DOUBLE_EQ(learning_rate(c, 5000), 2e-4);  // stays at the end's
  EXPECT_DOUBLE_EQ(learning_rate(config("cosine", 1), 700), 2e-3);
  EXPECT_NEAR(learning_rate(config("cosine", 0), 1100), 0, 1e-18);
}

TEST(Schedule, Constant) {
  for (int64_t tokens : {101, 600, 1100, 5000})
    EXPECT_DOUBLE_EQ(learning_rate(config("constant"), tokens), 2e-3);
}

TEST(Schedule, WarmUpStableDecay) {
  const Config c = config("wsd");
  EXPECT_DOUBLE_EQ(learning_rate(c, 900), 2e-3);
  EXPECT_DOUBLE_EQ(learning_rate(c, 1000), 2e-3 * 0.55);
  EXPECT_DOUBLE_EQ(learning_rate(c, 1050), 2e-3 * 0.325);
  EXPECT_DOUBLE_EQ(learning_rate(c, 1100), 2e-4);
  EXPECT_DOUBLE_EQ(learning_rate(c, 5000), 2e-4);
}

TEST(Schedule, WithoutWarmUpOrDecay) {
  Config c = config("cosine");
  c.schedule.warmup_tokens = 0;
  EXPECT_DOUBLE_EQ(learning_rate(c, 550), 2e-3 * 0.55);
  EXPECT_GT(learning_rate(c, 1), 1.99e-3);
  c.schedule.warmup_tokens = c.train.max_tokens;  // warm-up only
  EXPECT_DOUBLE_EQ(learning_rate(c, 550), 1e-3);
  EXPECT_TRUE(std::isfinite(learning_rate(c, 1100)));
  c = config("wsd");
  c.schedule.decay_tokens = 0;
  EXPECT_DOUBLE_EQ(learning_rate(c, 1100), 2e-3);
}

}  // namespace
}  // namespace kla::testing
