#include "core/arena.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/context.h"
#include "core/error.h"

namespace kla {
namespace {

TEST(Arena, CountingArenaPredictsTheRealOne) {
  auto program = [](Arena& arena) {
    arena.allocate(DType::f32, {3, 5});
    {
      ArenaScope scope(arena);
      arena.allocate(DType::f64, {1000});
    }
    arena.allocate(DType::u8, {7});
  };
  Arena plan("test");
  program(plan);
  EXPECT_TRUE(plan.counting());
  Arena real("test", plan.high_water());
  program(real);
  EXPECT_EQ(real.high_water(), plan.high_water());
  EXPECT_EQ(real.used(), plan.used());
  EXPECT_THROW(real.allocate(DType::f64, {1000}), Error);
}

TEST(Arena, PoisonedMemoryIsNaN) {
  Arena arena("test", 1 << 12);
  arena.poison(true);
  EXPECT_TRUE(std::isnan(arena.allocate(DType::f32, {16}).as<float>()[3]));
  EXPECT_TRUE(std::isnan(arena.allocate(DType::f64, {16}).as<double>()[15]));
}

TEST(View, ColumnsAndRows) {
  float values[12];
  const View whole(values, {3, 4});
  const View right = whole.columns(2, 2);
  EXPECT_EQ(right.as<float>(), values + 2);
  EXPECT_EQ(right.stride, 4);
  EXPECT_FALSE(right.dense());
  EXPECT_EQ(whole.row_range(1, 2).as<float>(), values + 4);
  EXPECT_THROW(right.as<double>(), Error);
  EXPECT_THROW(whole.columns(3, 2), Error);
  EXPECT_EQ(right.reshape({3, 1, 2}).stride, 4);
}

TEST(ThreadPool, RunsEveryTaskOnceAndRethrows) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    std::vector<int> count(1000, 0);
    for (int round = 0; round < 50; ++round)
      pool.run(1000, [&](int64_t i, int) { ++count[static_cast<size_t>(i)]; });
    for (int c : count) EXPECT_EQ(c, 50);
    EXPECT_THROW(pool.run(10,
                          [](int64_t i, int) {
                            if (i == 7) throw Error(Exit::data, "seven");
                          }),
                 Error);
    pool.run(1000, [&](int64_t i, int) { ++count[static_cast<size_t>(i)]; });
    EXPECT_EQ(count[999], 51);
  }
}

}  // namespace
}  // namespace kla
