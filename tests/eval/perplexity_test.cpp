// The bootstrap interval covers the truth as often as it says, and equals the textbook one where
// there is one.
#include "eval/perplexity.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
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

// Two models whose losses differ by 0.01 a target on documents that differ by far more.
TEST(CompareLosses, PairingFindsWhatSeparateIntervalsHide) {
  const RandomStream random(9, "documents");
  DocumentLosses a, b;
  for (uint64_t d = 0; d < 50; ++d) {
    const double n = std::floor(random.uniform(3 * d, 20, 200));
    const double hard = 3 + random.normal(3 * d + 1);
    a.loss.push_back(n * hard);
    b.loss.push_back(n * (hard + 0.01 + 0.005 * random.normal(3 * d + 2)));
    a.count.push_back(static_cast<int64_t>(n));
  }
  a.loss.push_back(0);  // a document that was not scored
  b.loss.push_back(0);
  a.count.push_back(0);
  b.count = a.count;
  const PairedLoss paired = compare_losses(a, b);
  EXPECT_EQ(paired.documents, 50);
  EXPECT_GT(paired.low, 0.005);
  EXPECT_LT(paired.high, 0.015);
  EXPECT_GT(paired.difference, paired.low);
  EXPECT_LT(paired.difference, paired.high);
  const Interval x = bootstrap_interval(a.loss, a.count), y = bootstrap_interval(b.loss, b.count);
  EXPECT_GT(x.high, y.low) << "the separate intervals overlap";
  EXPECT_EQ(compare_losses(b, a).difference, -paired.difference);
  b.count[3] += 1;
  EXPECT_THROW(compare_losses(a, b), Error);
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
