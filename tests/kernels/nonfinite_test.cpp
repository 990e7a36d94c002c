// What is not finite must come out of every op it goes into, or a diverging run would go unseen;
// and the exponential family is accurate to a few units in the last place, element by element.
#include <gtest/gtest.h>

#include "kernels/ops.h"
#include "tests/support/compare.h"

namespace kla::testing {
namespace {

constexpr int64_t kWidth = 39;  // whole vectors, a group of four and single elements on any machine

Values ones_but(int64_t bad, double value) {
  Values values(kWidth, 1);
  values[static_cast<size_t>(bad)] = value;
  return values;
}

bool all_finite(const Values& values) {
  return std::all_of(values.begin(), values.end(), [](double x) { return std::isfinite(x); });
}

// Runs `program` on every device with a NaN at every place of a row.
template <class Program>
void expect_nan_comes_out(Program&& program) {
  for (Device device : all_devices())
    for (int64_t bad = 0; bad < kWidth; ++bad) {
      const Values x = ones_but(bad, std::nan(""));
      const Results results = execute(device, [&](Lab& lab) { program(lab, x); });
      for (const auto& [name, values] : results)
        EXPECT_FALSE(all_finite(values)) << name << ", NaN at " << bad << " on " << name_of(device);
    }
}

TEST(NonFinite, RmsNorm) {
  expect_nan_comes_out([](Lab& lab, const Values& x) {
    const RmsNormForward forward{lab.compute({1, kWidth}), lab.acc({1}), lab.acc(x, {1, kWidth}),
                                 lab.acc(Values(kWidth, 1), {kWidth}), 1e-5};
    lab(ops::rms_norm_forward, forward);
    lab.keep("y", forward.y);
    lab.keep("rstd", forward.rstd);
  });
}

TEST(NonFinite, GatedRmsNorm) {
  expect_nan_comes_out([](Lab& lab, const Values& gate) {
    const GatedRmsNormForward forward{.y = lab.compute({1, kWidth}),
                                      .rstd = lab.acc({1, 1}),
                                      .x = lab.compute(Values(kWidth, 1), {1, kWidth}),
                                      .gate = lab.compute(gate, {1, kWidth}),
                                      .w = lab.acc(Values(kWidth, 1), {kWidth})};
    lab(ops::gated_rms_norm_forward, forward);
    lab.keep("y", forward.y);
  });
}

TEST(NonFinite, Swiglu) {
  expect_nan_comes_out([](Lab& lab, const Values& x) {
    const View one = lab.compute(Values(kWidth, 1), {1, kWidth});
    const View bad = lab.compute(x, {1, kWidth});
    const SwigluForward gate{lab.compute({1, kWidth}), bad, one};
    const SwigluForward up{lab.compute({1, kWidth}), one, bad};
    lab(ops::swiglu_forward, gate);
    lab(ops::swiglu_forward, up);
    lab.keep("bad gate", gate.y);
    lab.keep("bad up", up.y);
  });
}

// A NaN logit of any token of the vocabulary, not only of the target.
TEST(NonFinite, LmHeadLoss) {
  expect_nan_comes_out([](Lab& lab, const Values& w) {
    LmHeadLoss loss;
    loss.losses = lab.acc({1});
    loss.dx = lab.compute({1, 1});
    loss.dw = lab.accumulator({kWidth, 1});
    loss.x = lab.compute(Values{1}, {1, 1});
    loss.w = lab.compute(w, {kWidth, 1});
    loss.targets = lab.typed(DType::i32, Values{5}, {1});
    loss.grad_scale = 1;
    lab(ops::lm_head_loss, loss);
    lab.keep("losses", loss.losses);
    lab.keep("dx", loss.dx);
    lab.keep("dw", loss.dw);
  });
}

TEST(Silu, IsAccurateElementByElement) {
  constexpr int64_t kCount = 20000;
  const Values gate = uniform("gate", kCount, -87, 88);
  const auto program = [&](Lab& lab) {
    const View one = lab.compute(Values(kCount, 1), {1, kCount});
    const View x = lab.compute(gate, {1, kCount});
    const SwigluForward forward{lab.compute({1, kCount}), x, one};
    const SwigluBackward backward{lab.compute({1, kCount}), lab.compute({1, kCount}), one, x, one};
    lab(ops::swiglu_forward, forward);
    lab(ops::swiglu_backward, backward);
    lab.keep("value", forward.y);
    lab.keep("slope", backward.dgate);
  };
  const Results reference = execute(Device::reference, program);
  for (Device device : devices_under_test()) {
    const Results results = execute(device, program);
    for (size_t i = 0; i < kCount; ++i) {
      const double value = reference.at("value")[i], slope = reference.at("slope")[i];
      ASSERT_NEAR(results.at("value")[i], value, 4e-7 * std::abs(value)) << gate[i];
      // The slope has a zero near -1.28, so its error is that of its two terms.
      const double terms = std::abs(value) + std::abs(slope);
      ASSERT_NEAR(results.at("slope")[i], slope, 1e-6 * terms) << gate[i];
    }
  }
}

}  // namespace
}  // namespace kla::testing
