// Which steps the non-finite guard lets pass, and when it ends the run.
#include "train/guard.h"

#include <gtest/gtest.h>

#include "tests/train/scratch.h"

namespace kla::testing {
namespace {

TEST(Guard, CountsInARowAndInAll) {
  GuardState state;
  const NonfiniteConfig config{.policy = "skip", .max_consecutive = 3, .max_total = 100};
  for (bool finite : {true, false, false, true, false, true, true})
    record_step(state, config, finite, 1);
  EXPECT_EQ(state, (GuardState{.consecutive = 0, .total = 3}));
}

TEST(Guard, StopsAtTheLimitInARow) {
  GuardState state;
  const NonfiniteConfig config{.policy = "skip", .max_consecutive = 3, .max_total = 100};
  for (bool finite : {false, false, true, false, false}) record_step(state, config, finite, 1);
  EXPECT_REFUSED(Exit::numerical,
                 "step 6: loss or gradient norm is not finite (3 in a row, 5 in all)",
                 record_step(state, config, false, 6));
}

TEST(Guard, StopsAtTheLimitInAll) {
  GuardState state;
  const NonfiniteConfig config{.policy = "skip", .max_consecutive = 5, .max_total = 4};
  for (int i = 0; i < 3; ++i) {
    record_step(state, config, false, 1);
    record_step(state, config, true, 1);
  }
  EXPECT_REFUSED(Exit::numerical, "(1 in a row, 4 in all)", record_step(state, config, false, 1));
}

TEST(Guard, ThePolicyStopStopsAtOnce) {
  GuardState state;
  const NonfiniteConfig config{.policy = "stop", .max_consecutive = 5, .max_total = 100};
  record_step(state, config, true, 1);
  EXPECT_REFUSED(Exit::numerical, "step 2", record_step(state, config, false, 2));
}

}  // namespace
}  // namespace kla::testing
