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

// program(Lab&) reads `inputs` and runs forward and backward; loss(results) is what the backward
// differentiates. Gradients in `added` were accumulated on top of lab.initial_gradient.
template <class Program, class Loss>
void expect_gradients(Inputs& inputs, Program&& program, Loss&& loss,
                      const std::set<std::string>& added, const std::string& what) {
  constexpr double kStep = 1e-5, kBound = 1e-6;
  const Results analytic = execute(Device::reference, program);
  int checked = 0;
  for (const auto& [key, gradient] : analytic) {
    if (!key.starts_with("d.")) continue;
    const std::string name = key.substr(2);
    Values& x = inputs.at(name);
    Values slope(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      const double middle = x[i];
      x[i] = middle + kStep;
      const double above = loss(execute(Device::reference, program));
      x[i] = middle - kStep;
      slope[i] = (above - loss(execute(Device::reference, program))) / (2 * kStep);
      x[i] = middle;
    }
    Values got = gradient;
    if (added.contains(name))
      for (double& g : got) g -= Lab::kInitialGradient;
    const double error = relative_rms(got, slope);
    EXPECT_TRUE(error <= kBound) << what << ": " << key << " differs by " << error;
    ++checked;
  }
  EXPECT_GT(checked, 0) << what;
}

}  // namespace kla::testing
