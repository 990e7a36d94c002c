// Finite differences: every gradient that a program keeps as d.NAME against central differences of
// its loss in every entry of the input NAME, on the reference device in double.
#pragma once

#include <set>
#include <string>

#include "tests/support/compare.h"

namespace kla::testing {

using Inputs = std::map<std::string, Values>;

inline double dot(const Values& a, const Values& b) {
  KLA_CHECK(a.size() == b.size(), "dot");
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// gradients: what forward and backward kept. loss() runs the forward on `inputs` as they then are.
// Gradients in `added` were accumulated on top of Lab::kInitialGradient.
template <class Loss>
void expect_gradients(const Results& gradients, Inputs& inputs, Loss&& loss,
                      const std::set<std::string>& added, const std::string& what) {
  constexpr double kStep = 1e-5, kBound = 1e-6;
  int checked = 0;
  for (const auto& [key, gradient] : gradients) {
    if (!key.starts_with("d.")) continue;
    const std::string name = key.substr(2);
    Values& x = inputs.at(name);
    Values slope(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      const double middle = x[i];
      x[i] = middle + kStep;
      const double above = loss();
      x[i] = middle - kStep;
      slope[i] = (above - loss()) / (2 * kStep);
      x[i] = middle;
    }
    Values own = gradient;
    if (added.contains(name))
      for (double& g : own) g -= Lab::kInitialGradient;
    const double error = relative_rms(own, slope);
    EXPECT_TRUE(error <= kBound) << what << ": " << key << " differs by " << error;
    ++checked;
  }
  EXPECT_GT(checked, 0) << what;
}

// The same for a program(Lab&) that runs both; `value` is the loss as a function of its results.
template <class Program, class Value>
void expect_program_gradients(Inputs& inputs, Program&& program, Value&& value,
                              const std::set<std::string>& added, const std::string& what) {
  const auto run = [&] { return execute(Device::reference, program); };
  expect_gradients(
      run(), inputs, [&] { return value(run()); }, added, what);
}

}  // namespace kla::testing
