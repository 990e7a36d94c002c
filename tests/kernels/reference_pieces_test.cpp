// Every small function of the reference and the recurrent delta rule against central differences in
// long double: an error of 1e-9 would show.
#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "core/philox.h"
#include "kernels/reference/pieces.h"
#include "kernels/reference/recurrent.h"

namespace kla::reference {
namespace {

using Real = long double;
using Vector = std::vector<Real>;
using Function = std::function<Real(const Vector&)>;

constexpr Real kStep = 1e-7L, kBound = 1e-9L;

Vector random(const char* name, int64_t n, Real low = -2, Real high = 2) {
  const RandomStream stream(7, name);
  Vector x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = stream.uniform(i, static_cast<double>(low), static_cast<double>(high));
  return x;
}

Vector numeric_gradient(const Function& f, Vector x) {
  Vector gradient;
  for (Real& value : x) {
    const Real center = value;
    value = center + kStep;
    const Real above = f(x);
    value = center - kStep;
    gradient.push_back((above - f(x)) / (2 * kStep));
    value = center;
  }
  return gradient;
}

// Largest difference over largest numeric entry.
Real gradient_error(const Function& f, const Vector& x, const Vector& gradient) {
  const Vector expected = numeric_gradient(f, x);
  Real error = 0, largest = 1e-3L;
  for (size_t i = 0; i < x.size(); ++i) {
    error = std::max(error, std::abs(gradient[i] - expected[i]));
    largest = std::max(largest, std::abs(expected[i]));
  }
  return error / largest;
}

Real sum_of(const Vector& weights, const Vector& values) {
  return dot(weights.data(), values.data(), static_cast<int64_t>(weights.size()));
}

TEST(Checker, CatchesAPlantedWrongDerivative) {
  const Function cube = [](const Vector& x) { return x[0] * x[0] * x[0]; };
  EXPECT_LT(gradient_error(cube, {1.5L}, {3 * 1.5L * 1.5L}), kBound);
  EXPECT_GT(gradient_error(cube, {1.5L}, {3 * 1.5L * 1.5L * (1 + 1e-7L)}), kBound);
}

TEST(Pieces, ScalarFunctions) {
  for (Real x : {-30.0L, -3.0L, -1e-3L, 0.0L, 0.7L, 5.0L, 30.0L}) {
    auto check = [&](const char* name, const std::function<Real(Real)>& f, Real derivative) {
      const Function g = [&](const Vector& v) { return f(v[0]); };
      EXPECT_LT(gradient_error(g, {x}, {derivative}), kBound) << name << " at " << x;
    };
    const Real dy = 1.7L, a_log = 0.4L;
    Real da_log = 0;
    check(
        "sigmoid", [&](Real z) { return dy * sigmoid_forward(z); },
        sigmoid_backward(sigmoid_forward(x), dy));
    check(
        "silu", [&](Real z) { return dy * silu_forward(z); }, silu_backward(x, dy));
    check(
        "softplus", [&](Real z) { return dy * softplus_forward(z); }, softplus_backward(x, dy));
    check(
        "mamba gate", [&](Real z) { return dy * mamba_gate_forward(z, a_log); },
        mamba_gate_backward(&da_log, x, a_log, dy));
    check(
        "mamba gate, a_log", [&](Real z) { return dy * mamba_gate_forward(x, z - x + a_log); },
        da_log);
    check(
        "logsigmoid gate", [&](Real z) { return dy * logsigmoid_gate_forward(z); },
        logsigmoid_gate_backward(x, dy));
  }
  EXPECT_DOUBLE_EQ(softplus_forward(800.0), 800.0);
  EXPECT_DOUBLE_EQ(sigmoid_forward(-800.0), 0.0);
}

TEST(Pieces, SingleGateStopsAtItsClamp) {
  for (Real eta : {0.1L, 0.5L, 0.999L}) {
    const Function f = [](const Vector& v) { return 1.7L * single_gate_forward(v[0]); };
    EXPECT_LT(gradient_error(f, {eta}, {single_gate_backward(eta, 1.7L)}), 1e-6L) << eta;
  }
  EXPECT_DOUBLE_EQ(single_gate_forward(1.0), std::log(1e-6));
  EXPECT_EQ(single_gate_backward(1.0, 3.0), 0.0);
}

TEST(Pieces, ShortConvolution) {
  const Vector w = random("w", kConvWidth), x = random("x", kConvWidth);
  Vector dw(kConvWidth, 0), dx(kConvWidth, 0);
  short_conv_backward(dw.data(), dx.data(), w.data(), x.data(), 1.7L);
  const Function of_w = [&](const Vector& v) {
    return 1.7L * short_conv_forward(v.data(), x.data());
  };
  const Function of_x = [&](const Vector& v) {
    return 1.7L * short_conv_forward(w.data(), v.data());
  };
  EXPECT_LT(gradient_error(of_w, w, dw), kBound);
  EXPECT_LT(gradient_error(of_x, x, dx), kBound);
}

TEST(Pieces, UnitAndSoftmaxMaps) {
  const int64_t n = 5;
  const Vector dy = random("dy", n);
  for (Real size : {1e-3L, 1.0L, 30.0L}) {
    Vector x = random("x", n);
    for (Real& value : x) value *= size;
    Vector y(n), dx(n);
    const Real r = unit_forward(y.data(), x.data(), n, 1e-2L);
    unit_backward(dx.data(), dy.data(), y.data(), n, r);
    const Function unit = [&](const Vector& v) {
      Vector out(n);
      unit_forward(out.data(), v.data(), n, 1e-2L);
      return sum_of(dy, out);
    };
    EXPECT_LT(gradient_error(unit, x, dx), kBound) << size;
    softmax_forward(y.data(), x.data(), n);
    softmax_backward(dx.data(), dy.data(), y.data(), n);
    const Function softmax = [&](const Vector& v) {
      Vector out(n);
      softmax_forward(out.data(), v.data(), n);
      return sum_of(dy, out);
    };
    EXPECT_LT(gradient_error(softmax, x, dx), kBound) << size;
  }
}

TEST(Pieces, ValueOverKeyNorm) {
  const int64_t n = 4;
  const Vector dy = random("dy", n);
  Vector x = random("x", n + 1, 0.3L, 2), y(n), dx(n);  // the value, then n2
  over_key_norm_forward(y.data(), x.data(), n, x[4], 1e-2L);
  dx.push_back(over_key_norm_backward(dx.data(), dy.data(), y.data(), n, x[4], 1e-2L));
  const Function f = [&](const Vector& v) {
    Vector out(n);
    over_key_norm_forward(out.data(), v.data(), n, v[4], 1e-2L);
    return sum_of(dy, out);
  };
  EXPECT_LT(gradient_error(f, x, dx), kBound);
}

TEST(Pieces, RmsNormRow) {
  const int64_t n = 6;
  const Vector dy = random("dy", n), x = random("x", n), w = random("w", n);
  const Vector residual = random("residual", n);
  Vector y(n), dx(n), dw(n, 0);
  const Real r = rms_norm_row_forward(y.data(), x.data(), w.data(), n, 1e-2L);
  rms_norm_row_backward(dx.data(), dw.data(), residual.data(), dy.data(), x.data(), w.data(), n, r);
  auto loss = [&](const Vector& x_, const Vector& w_) {
    Vector out(n);
    rms_norm_row_forward(out.data(), x_.data(), w_.data(), n, 1e-2L);
    return sum_of(dy, out) + sum_of(residual, x_);
  };
  EXPECT_LT(gradient_error([&](const Vector& v) { return loss(v, w); }, x, dx), kBound);
  EXPECT_LT(gradient_error([&](const Vector& v) { return loss(x, v); }, w, dw), kBound);
}

TEST(Pieces, UnitLowerInverse) {
  const int64_t n = 5;
  const Vector dout = random("dout", n * n);
  Vector a = random("a", n * n), out(n * n), da(n * n), scratch(n * n);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = i; j < n; ++j) a[static_cast<size_t>(i * n + j)] = 0;
  auto square = [&](const Vector& v) { return Matrix<Real>{const_cast<Real*>(v.data()), n, n, n}; };
  unit_lower_inverse_forward(square(out), square(a));
  Vector product(n * n, 0);  // (I + A) out
  add_ab(square(product), square(a), square(out));
  for (size_t i = 0; i < product.size(); ++i)
    EXPECT_NEAR(static_cast<double>(product[i] + out[i]), i % (n + 1) == 0 ? 1 : 0, 1e-15);
  unit_lower_inverse_backward(square(da), square(dout), square(out), square(scratch));
  const Function f = [&](const Vector& v) {
    Vector inverse(n * n);
    unit_lower_inverse_forward(square(inverse), square(v));
    return sum_of(dout, inverse);
  };
  const Vector expected = numeric_gradient(f, a);  // the upper half is not read
  for (size_t i = 0; i < da.size(); ++i)
    EXPECT_NEAR(static_cast<double>(da[i]), static_cast<double>(expected[i]), 1e-9);
}

TEST(Pieces, CrossEntropy) {
  const int64_t n = 7;
  const Vector z = random("z", n);
  Vector dz(n);
  cross_entropy_backward(dz.data(), z.data(), n, 3, 0.3L);
  const Function f = [&](const Vector& v) { return 0.3L * cross_entropy_forward(v.data(), n, 3); };
  EXPECT_LT(gradient_error(f, z, dz), kBound);

  const std::vector<double> small(z.begin(), z.end());
  std::vector<double> large = small;  // e^5000 overflows
  for (double& value : large) value += 5000;
  EXPECT_NEAR(cross_entropy_forward(large.data(), n, 3), cross_entropy_forward(small.data(), n, 3),
              1e-11);
}

// The recurrent delta rule of one head as a function of one vector: q, k, v, beta, g, then the
// state.
struct Recurrent {
  static constexpr int64_t T = 5, K = 3, V = 2, kCount = T * (2 * K + V + 2) + V * K;
  const uint8_t reset[T] = {0, 0, 1, 0, 0};

  static Matrix<Real> at(const Vector& x, int64_t first, int64_t rows, int64_t cols) {
    return {const_cast<Real*>(x.data()) + first, rows, cols, cols};
  }
  RecurrentHead<Real> head(const Vector& x) const {
    return {at(x, 0, T, K),
            at(x, T * K, T, K),
            at(x, 2 * T * K, T, V),
            {at(x, T * (2 * K + V), T, 1).data, 1},
            {at(x, T * (2 * K + V + 1), T, 1).data, 1},
            reset,
            0.7L};
  }
  static Matrix<Real> state(const Vector& x) { return at(x, kCount - V * K, V, K); }

  Real loss(Vector x, const Vector& dout, const Vector& dS) const {
    Vector o(T * V), error(V);
    recurrent_forward(head(x), at(o, 0, T, V), state(x), error.data());
    return sum_of(dout, o) + dot(dS.data(), state(x).data, V * K);
  }
};

TEST(Pieces, RecurrentDeltaRule) {
  const Recurrent rule;
  const int64_t T = rule.T, K = rule.K, V = rule.V;
  const Vector x = random("x", rule.kCount, -1, 1);
  const Vector dout = random("dout", T * V), dS = random("dS", V * K);
  Vector dx(static_cast<size_t>(rule.kCount)), states(T * V * K), S(V * K), error(V), dr(V);
  std::copy(dS.begin(), dS.end(), rule.state(dx).data);
  const RecurrentHead<Real> d = rule.head(dx);
  recurrent_backward<Real>(
      rule.head(x), {d.q, d.k, d.v, d.beta, d.g}, rule.state(x), rule.at(dout, 0, T, V),
      rule.state(dx), {rule.at(states, 0, T * V, K), rule.at(S, 0, V, K), error.data(), dr.data()});
  const Function f = [&](const Vector& v) { return rule.loss(v, dout, dS); };
  EXPECT_LT(gradient_error(f, x, dx), kBound);
  EXPECT_EQ(d.g[2], 0) << "nothing decays into a new document";
}

}  // namespace
}  // namespace kla::reference
