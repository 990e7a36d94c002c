// What kla check makes of the errors it found: every layer within its bounds, or exit code 5.
#include "commands/check_command.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"

namespace kla {
namespace {

constexpr CheckBounds kBounds{1e-5, 1e-4, 1e-10};
const LayerCheck kGood{
    .layer = 0, .chunkwise = 9e-6, .recurrent = 9e-6, .between = 9e-5, .definition = 9e-11};

Exit outcome(const LayerCheck& second) {
  try {
    report_check({kGood, second}, kBounds);
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("1 of 2 layers"), std::string::npos) << error.what();
    EXPECT_FALSE(error.remedy().empty());
    return error.code();
  }
  return Exit::ok;
}

TEST(CheckCommand, AnyErrorBeyondItsBoundIsExitFive) {
  EXPECT_EQ(outcome(kGood), Exit::ok);
  const std::initializer_list<double LayerCheck::*> errors = {
      &LayerCheck::chunkwise, &LayerCheck::recurrent, &LayerCheck::between,
      &LayerCheck::definition};
  for (const auto error : errors)
    for (double factor : {1.2, std::nan(""), HUGE_VAL}) {
      LayerCheck bad = kGood;
      bad.*error *= factor;
      EXPECT_EQ(outcome(bad), Exit::numerical) << factor;
    }
}

}  // namespace
}  // namespace kla
