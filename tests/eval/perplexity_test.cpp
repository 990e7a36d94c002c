// The bootstrap interval covers the truth as often as it says, and equals the textbook one where
// there is one.
#include "eval/perplexity.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/philox.h"

namespace kla {
namespace {

TEST(BootstrapInterval, CoversTheMeanOfAKnownPopulation) {
  const RandomStream random(5, "documents");
  uint64_t draw = 0;
  int covered = 0;
  const int trials = 300;
  for (int trial = 0; trial < trials; ++trial) {
    std::vector<double> sums;
    std::vector<int64_t> counts;
    for (int d = 0; d < 60; ++d) {  // documents of unlike length, true loss 3 nats a target
      const auto n = static_cast<int64_t>(random.uniform(draw++, 20, 200));
      sums.push_back(static_cast<double>(n) * (3 + 0.5 * random.normal(draw++)));
      counts.push_back(n);
    }
    const Interval i = bootstrap_interval(sums, counts, 400, static_cast<uint64_t>(trial));
    covered += i.low <= 3 && 3 <= i.high;
  }
  // 95 % nominal, slightly less at 60 documents; four standard errors of the estimate are 5 points.
  EXPECT_GT(covered, 0.88 * trials);
  EXPECT_LT(covered, trials);
}

TEST(BootstrapInterval, IgnoresDocumentsWithoutTargetsAndNeedsTwo) {
  const Interval one = bootstrap_interval({5, 0}, {2, 0});
  EXPECT_TRUE(std::isnan(one.low) && std::isnan(one.high));
  const Interval same = bootstrap_interval({6, 9, 0}, {2, 3, 0});  // both at 3 nats
  EXPECT_DOUBLE_EQ(same.low, 3);
  EXPECT_DOUBLE_EQ(same.high, 3);
}

TEST(Perplexity, BitsPerByte) {
  Perplexity p;
  p.loss = 2 * std::log(2.0);
  p.tokens = 30;
  p.bytes = 120;
  EXPECT_DOUBLE_EQ(p.bits_per_byte(), 0.5);
  EXPECT_DOUBLE_EQ(p.ppl(), 4);
}

}  // namespace
}  // namespace kla
