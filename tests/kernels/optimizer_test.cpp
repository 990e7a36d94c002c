// grad_norm and adamw against their formulas (ops.h), on every device; segments that are not
// decayed or not trained; clipping; and the list test: every op exists on every device.
#include <gtest/gtest.h>

#include "kernels/ops.h"
#include "tests/support/compare.h"

namespace kla::testing {
namespace {

TEST(Ops, EveryOpHasAFunctionOnEveryDevice) {
  ASSERT_FALSE(OpBase::all().empty());
  for (const OpBase* op : OpBase::all())
    for (Device device : all_devices())
      EXPECT_TRUE(op->has(device)) << op->name() << " on " << name_of(device);
}

TEST(Ops, TheProductIsLinked) {
  EXPECT_TRUE(ops::rms_norm_forward.has(Device::cpu));
}

TEST(GradNorm, IsTheRootOfTheSumOfSquares) {
  for (int64_t n : {0, 1, 7, 1000, 100003}) {
    const Values g = uniform("g", n, -3, 3);
    const auto program = [&](Lab& lab) {
      const GradNorm norm{lab.typed(DType::f64, {1}), lab.acc(g, {n})};
      lab(ops::grad_norm, norm);
      lab.keep("norm", norm.norm);
    };
    double sum = 0;
    for (double x : g) sum += x * x;
    const Results r = execute(Device::reference, program);
    EXPECT_NEAR(r.at("norm")[0], std::sqrt(sum), 1e-12 * std::sqrt(sum)) << n;
    expect_contract(program, std::to_string(n) + " gradients", 1e-6);
  }
}

// The guard of the training loop reads the norm: it must not hide what is not finite.
TEST(GradNorm, ShowsWhatIsNotFinite) {
  for (double bad : {std::nan(""), HUGE_VAL}) {
    Values g = uniform("g", 5000);
    g[4321] = bad;
    for (Device device : all_devices()) {
      const Results r = execute(device, [&](Lab& lab) {
        const GradNorm norm{lab.typed(DType::f64, {1}), lab.acc(g, {5000})};
        lab(ops::grad_norm, norm);
        lab.keep("norm", norm.norm);
      });
      EXPECT_FALSE(std::isfinite(r.at("norm")[0])) << name_of(device);
    }
  }
}

struct Update {
  Adamw settings;
  Values w, m, v, g;
  double norm = 3;
  std::vector<AdamwSegment> segments;
};

Update draw_update(int64_t n) {
  Update u;
  u.w = uniform("w", n);
  u.m = uniform("m", n, -0.1, 0.1);
  u.v = uniform("v", n, 0, 0.1);
  u.g = uniform("g", n, -2, 2);
  u.settings.lr = 0.01;
  u.settings.step = 3;
  u.segments = {{.first = 0, .count = n / 3},
                {.first = n / 3, .count = n / 5, .decay = false},
                {.first = n / 3 + n / 5, .count = n / 7, .trained = false},
                {.first = n / 3 + n / 5 + n / 7, .count = n - n / 3 - n / 5 - n / 7}};
  return u;
}

void run_adamw(Lab& lab, const Update& u, bool copy = true) {
  const auto n = static_cast<int64_t>(u.w.size());
  Adamw a = u.settings;
  a.w = lab.acc(u.w, {n});
  a.m = lab.acc(u.m, {n});
  a.v = lab.acc(u.v, {n});
  if (copy) a.copy = lab.compute(u.w, {n});
  a.g = lab.acc(u.g, {n});
  a.norm = lab.typed(DType::f64, {u.norm}, {1});
  a.segments = u.segments.data();
  a.segment_count = static_cast<int64_t>(u.segments.size());
  lab(ops::adamw, a);
  lab.keep("w", a.w);
  lab.keep("m", a.m);
  lab.keep("v", a.v);
  if (copy) lab.keep("copy", a.copy);
}

Results formula(const Update& u) {
  const Adamw& a = u.settings;
  Results r{{"w", u.w}, {"m", u.m}, {"v", u.v}};
  const double clip = a.max_norm > 0 ? std::min(1.0, a.max_norm / (u.norm + 1e-6)) : 1;
  for (const AdamwSegment& segment : u.segments)
    for (int64_t k = 0; segment.trained && k < segment.count; ++k) {
      const auto i = static_cast<size_t>(segment.first + k);
      const double g = clip * u.g[i], t = static_cast<double>(a.step);
      double &w = r["w"][i], &m = r["m"][i], &v = r["v"][i];
      m = a.beta1 * m + (1 - a.beta1) * g;
      v = a.beta2 * v + (1 - a.beta2) * g * g;
      const double m_hat = m / (1 - std::pow(a.beta1, t)), v_hat = v / (1 - std::pow(a.beta2, t));
      w = w * (1 - a.lr * (segment.decay ? a.weight_decay : 0)) -
          a.lr * m_hat / (std::sqrt(v_hat) + a.eps);
    }
  r["copy"] = r["w"];
  return r;
}

TEST(Adamw, IsItsFormula) {
  for (double max_norm : {0.0, 1.0, 100.0})
    for (int64_t step : {1, 3, 100000}) {
      Update u = draw_update(1000);
      u.settings.max_norm = max_norm;
      u.settings.step = step;
      const Results r = execute(Device::reference, [&](Lab& lab) { run_adamw(lab, u); });
      expect_close(r, formula(u), 1e-13, "adamw, step " + std::to_string(step));
    }
}

TEST(Adamw, Contract) {
  for (int64_t n : {1, 17, 1000, 100003}) {
    Update u = draw_update(n);
    u.settings.max_norm = 1;
    expect_contract([&](Lab& lab) { run_adamw(lab, u); }, std::to_string(n) + " weights");
  }
}

TEST(Adamw, LeavesUntrainedSegmentsAlone) {
  const Update u = draw_update(1000);
  const AdamwSegment& frozen = u.segments[2];
  for (Device device : all_devices()) {
    const Results r = execute(device, [&](Lab& lab) { run_adamw(lab, u); });
    for (int64_t k = 0; k < frozen.count; ++k) {
      const auto i = static_cast<size_t>(frozen.first + k);
      EXPECT_EQ(r.at("w")[i], u.w[i]) << name_of(device);
      EXPECT_EQ(r.at("m")[i], u.m[i]) << name_of(device);
      EXPECT_EQ(r.at("v")[i], u.v[i]) << name_of(device);
    }
    EXPECT_NE(r.at("w")[0], u.w[0]);
  }
}

TEST(Adamw, SameWithoutACopy) {
  const Update u = draw_update(1000);
  for (Device device : all_devices()) {
    Results with = execute(device, [&](Lab& lab) { run_adamw(lab, u); });
    with.erase("copy");
    expect_identical(execute(device, [&](Lab& lab) { run_adamw(lab, u, false); }), with,
                     name_of(device));
  }
}

}  // namespace
}  // namespace kla::testing
