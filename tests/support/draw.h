// Random test inputs, rounded to f32 so that every device computes from the same numbers.
#pragma once

#include <string>

#include "tests/support/fixture.h"
#include "tests/support/lab.h"

namespace kla::testing {

inline Values rounded(Values values) {
  for (double& x : values) x = to_f32(x);
  return values;
}

// `count` numbers in [low, high) of the stream `name`.
inline Values uniform(const std::string& name, int64_t count, double low = -1, double high = 1) {
  const FixtureStream number(name);
  Values values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i)
    values[static_cast<size_t>(i)] = to_f32(low + (high - low) * number(i));
  return values;
}

// Integers in [low, high).
inline Values integers(const std::string& name, int64_t count, int64_t low, int64_t high) {
  Values values = uniform(name, count, 0, 1);
  for (double& x : values)
    x = std::floor(static_cast<double>(low) + static_cast<double>(high - low) * x * 0.999999);
  return values;
}

}  // namespace kla::testing
