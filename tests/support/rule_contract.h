// What a step-size rule promises (kernels/step_rules.h), checked on its struct alone: partial
// derivatives against central differences in long double, the bound of its gain, finite numbers for
// keys of any size, and that it reads what it says it reads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "kernels/step_rules.h"

namespace kla::testing {

using RuleInput = StepInput<long double>;

inline std::vector<RuleInput> rule_points() {
  std::vector<RuleInput> points;
  for (long double eta : {0.01L, 0.3L, 0.99L})
    for (long double n : {0.0L, 1e-4L, 1.3L, 400.0L, 1e32L})
      for (long double eps : {1e-6L, 1e-2L})
        for (long double t : {1.0L, 17.0L})
          for (long double lambda : {1e-3L, 0.8L, 30.0L})
            points.push_back({.eta = eta, .n = n, .eps = eps, .t = t, .scalar = lambda});
  return points;
}

// The error of one partial derivative of beta_hat against central differences of fourth order, both
// for a relative change of the input and in units of beta_hat, or of its change if that is larger.
template <class Rule>
double derivative_error(const RuleInput& at, SeqFactor factor, long double RuleInput::*input,
                        long double derivative) {
  const long double middle = at.*input, size = middle > 0 ? middle : at.eps, step = 1e-7L * size;
  const auto value = [&](int steps) {
    RuleInput moved = at;
    moved.*input = middle + steps * step;
    return write_gain<Rule>(moved, factor).beta_hat;
  };
  const long double slope = (8 * (value(1) - value(-1)) - (value(2) - value(-2))) / (12 * step);
  const long double scale = std::max(std::abs(value(0)), std::abs(slope * size));
  return static_cast<double>(std::abs(derivative - slope) * size / (scale + 1e-300L));
}

template <class Rule>
bool reads(long double RuleInput::*input) {
  for (RuleInput at : rule_points()) {
    const long double before = Rule::step(at).beta_hat;
    at.*input *= 0.5L;
    if (Rule::step(at).beta_hat != before) return true;
  }
  return false;
}

template <class Rule>
class RuleContract {
 public:
  // One line for each promise that is broken.
  std::vector<std::string> broken() {
    for (const RuleInput& at : rule_points()) {
      for (SeqFactor factor :
           {SeqFactor::none, SeqFactor::inv_t, SeqFactor::inv_sqrt_t, SeqFactor::inv_log_t})
        check_derivatives(at, factor);
      check_gain(at);
      check_single_precision(at);
    }
    constexpr RuleInfo info = Rule::info;
    expect(info.uses_eta == reads<Rule>(&RuleInput::eta), "uses_eta is not what step() reads");
    expect((info.scalar != LearnedScalar::none) == reads<Rule>(&RuleInput::scalar),
           "scalar is not what step() reads");
    expect(info.name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") == info.name.npos &&
               !info.name.empty(),
           "the name is not made of a-z, 0-9 and _");
    expect(!info.equation.empty() && !info.source.empty(), "equation or source is missing");
    return broken_;
  }

 private:
  void check_derivatives(const RuleInput& at, SeqFactor factor) {
    const StepValue<long double> y = write_gain<Rule>(at, factor);
    const auto check = [&](const char* name, long double RuleInput::*input, long double slope) {
      expect(derivative_error<Rule>(at, factor, input, slope) <= 1e-9,
             std::string(name) + " is not the derivative of beta_hat", at);
    };
    check("d_eta", &RuleInput::eta, y.d_eta);
    check("d_n", &RuleInput::n, y.d_n);
    check("d_scalar", &RuleInput::scalar, y.d_scalar);
  }

  void check_gain(const RuleInput& at) {
    if (Rule::info.max_gain == kUnboundedGain) return;
    const long double key =
        Rule::info.key == KeyMap::unit ? at.n / (at.n + at.eps) : 1;  // |k_hat|^2
    const long double gain = Rule::step(at).beta_hat * key, bound = Rule::info.max_gain;
    expect(gain >= 0 && gain <= bound * (1 + 1e-12L), "the write gain leaves [0, max_gain]", at);
  }

  void check_single_precision(const RuleInput& at) {
    if (!Rule::info.stable()) return;
    const auto f32 = [](long double x) { return static_cast<float>(x); };
    const StepValue<float> y = Rule::step(
        StepInput<float>{f32(at.eta), f32(at.n), f32(at.eps), f32(at.t), f32(at.scalar)});
    expect(std::isfinite(y.beta_hat + y.d_eta + y.d_n + y.d_scalar), "not finite in f32", at);
  }

  void expect(bool kept, const std::string& promise) {
    if (!kept) broken_.push_back(promise);
  }
  // The first point where a promise is broken is enough.
  void expect(bool kept, const std::string& promise, const RuleInput& at) {
    if (kept) return;
    for (const std::string& line : broken_)
      if (line.starts_with(promise)) return;
    char place[160];
    std::snprintf(place, sizeof(place), " at eta %Lg, n %Lg, eps %Lg, t %Lg, lambda %Lg", at.eta,
                  at.n, at.eps, at.t, at.scalar);
    broken_.push_back(promise + place);
  }

  std::vector<std::string> broken_;
};

}  // namespace kla::testing
