#include "core/philox.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace kla {
namespace {

// Known answers of Random123 (Salmon et al. 2011) for philox4x32-10.
TEST(Philox, KnownAnswers) {
  const std::array<uint32_t, 4> zeros = philox4x32({0, 0, 0, 0}, {0, 0});
  EXPECT_EQ(zeros, (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const uint32_t f = 0xffffffff;
  EXPECT_EQ(philox4x32({f, f, f, f}, {f, f}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(RandomStream, MomentsAndIndependenceOfNames) {
  const RandomStream a(7, "a"), b(7, "b"), other_seed(8, "a");
  EXPECT_NE(a.bits(0), b.bits(0));
  EXPECT_NE(a.bits(0), other_seed.bits(0));
  double sum = 0, squares = 0, uniform = 0;
  const int n = 200000;
  for (int i = 0; i < n; ++i) {
    const double x = a.normal(static_cast<uint64_t>(i));
    sum += x;
    squares += x * x;
    uniform += a.uniform(static_cast<uint64_t>(i));
  }
  EXPECT_NEAR(sum / n, 0, 4 / std::sqrt(n));
  EXPECT_NEAR(squares / n, 1, 4 * std::sqrt(2.0 / n));
  EXPECT_NEAR(uniform / n, 0.5, 4 / std::sqrt(12.0 * n));
}

TEST(RandomPermutation, IsABijectionOfEverySize) {
  for (uint64_t n : {1, 2, 3, 7, 64, 1000, 4097}) {
    const RandomPermutation permutation(n, 1234, "samples");
    std::set<uint64_t> seen;
    for (uint64_t i = 0; i < n; ++i) {
      EXPECT_LT(permutation(i), n);
      seen.insert(permutation(i));
    }
    EXPECT_EQ(seen.size(), n);
  }
}

}  // namespace
}  // namespace kla
