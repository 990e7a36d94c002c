// The reference's chunkwise delta rule, forward and backward, against the token-recurrent form.
#include <gtest/gtest.h>

#include "kernels/reference/recurrent.h"
#include "tests/kernels/reference_bench.h"

namespace kla::reference {
namespace {

struct DeltaCase {
  int64_t T, C;
  double least_g;                           // g is uniform in [least_g, 0]
  std::initializer_list<int64_t> resets{};  // over both sequences, B = 2
};

struct DeltaTest {
  static constexpr int64_t B = 2, H = 2, K = 5, V = 7;
  Bench bench;
  DeltaCase c;
  int64_t NC;
  DeltaInputs in;
  View S_initial, dS_final, dout;

  explicit DeltaTest(const DeltaCase& test_case) : c(test_case), NC(chunk_count(c.T, c.C)) {
    const int64_t T = c.T;
    in = {.q = bench.random({B, T, H, K}),
          .k = bench.random({B, T, H, K}, -0.6, 0.6),
          .v = bench.random({B, T, H, V}),
          .beta = bench.random({B, T, H}, 0, 1),
          .g = bench.random({B, T, H}, c.least_g, 0),
          .T_zero = bench.fresh({B, NC, H, c.C, c.C}),
          .reset = c.resets.size() ? bench.flags({B, T}, c.resets) : View(),
          .scale = 0.4};
    S_initial = bench.random({B, H, V, K});
    dS_final = bench.random({B, H, V, K});
    dout = bench.random({B, T, H, V});
    invert();
  }
  // (I + A) T = I solved column by column, independently of the reference's own inverse.
  void invert() {
    for (int64_t b = 0; b < B; ++b)
      for (int64_t n = 0; n < NC; ++n)
        for (int64_t h = 0; h < H; ++h) {
          double* out = in.T_zero.as<double>() + ((b * NC + n) * H + h) * c.C * c.C;
          for (int64_t col = 0; col < c.C; ++col)
            for (int64_t i = 0; i < c.C; ++i) {
              double x = i == col;
              for (int64_t l = col; l < i && n * c.C + i < c.T; ++l)
                x -= write(b, n * c.C + i, n * c.C + l, h) * out[l * c.C + col];
              out[i * c.C + col] = x;
            }
        }
  }
  double write(int64_t b, int64_t i, int64_t j, int64_t h) const {
    const double *k = in.k.as<double>(), *beta = in.beta.as<double>();
    const int64_t row = (b * c.T + i) * H + h;
    return beta[row] * dot(k + row * K, k + ((b * c.T + j) * H + h) * K, K);
  }
  Matrix<double> rows(const View& x, int64_t b, int64_t h) const {
    const int64_t n = x.cols();
    return {x.as<double>() + (b * c.T * H + h) * n, c.T, n, H * n};
  }
  Series<double> series(const View& x, int64_t b, int64_t h) const {
    return {x.as<double>() + b * c.T * H + h, H};
  }
  Matrix<double> state(const View& x, int64_t b, int64_t h) const {
    return {x.as<double>() + (b * H + h) * V * K, V, K, K};
  }
  RecurrentHead<double> head(int64_t b, int64_t h) const {
    return {rows(in.q, b, h),
            rows(in.k, b, h),
            rows(in.v, b, h),
            series(in.beta, b, h),
            series(in.g, b, h),
            in.reset.empty() ? nullptr : in.reset.as<uint8_t>() + b * c.T,
            in.scale};
  }
};

void check_delta(const DeltaCase& test_case) {
  DeltaTest t(test_case);
  Bench& bench = t.bench;
  const int64_t T = t.c.T, B = t.B, H = t.H, K = t.K, V = t.V;
  const View o = bench.fresh({B, T, H, V}), S_enter = bench.fresh({B, t.NC, H, V, K});
  const View S = bench.fresh({B, H, V, K}), dS = bench.fresh({B, H, V, K});
  const View dS_leave = bench.fresh({B, t.NC, H, V, K});
  const View dq = bench.fresh({B, T, H, K}), dk = bench.fresh({B, T, H, K});
  const View dv = bench.fresh({B, T, H, V});
  const View dbeta = bench.fresh({B, T, H}), dg = bench.fresh({B, T, H});
  ops::delta_scan_forward(
      bench.context,
      {.o = o, .S_enter = S_enter, .S_final = S, .S_initial = t.S_initial, .in = t.in});
  ops::delta_reverse_scan(
      bench.context,
      {.dS_leave = dS_leave, .dS_initial = dS, .dS_final = t.dS_final, .dout = t.dout, .in = t.in});
  ops::delta_chunk_backward(bench.context, {.dq = dq,
                                            .dk = dk,
                                            .dv = dv,
                                            .dbeta = dbeta,
                                            .dg = dg,
                                            .dout = t.dout,
                                            .S_enter = S_enter,
                                            .dS_leave = dS_leave,
                                            .in = t.in});

  const View o2 = bench.fresh({B, T, H, V}), S2 = bench.fresh({B, H, V, K});
  const View dS2 = bench.fresh({B, H, V, K}), error = bench.fresh({V});
  const View dq2 = bench.fresh({B, T, H, K}), dk2 = bench.fresh({B, T, H, K});
  const View dv2 = bench.fresh({B, T, H, V});
  const View dbeta2 = bench.fresh({B, T, H}), dg2 = bench.fresh({B, T, H});
  const auto scratch = new_recurrent_scratch<double>(*bench.context.scratch, T, K, V);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t h = 0; h < H; ++h) {
      const Matrix<double> initial = t.state(t.S_initial, b, h);
      copy(t.state(S2, b, h), initial);
      copy(t.state(dS2, b, h), t.state(t.dS_final, b, h));
      recurrent_forward(t.head(b, h), t.rows(o2, b, h), t.state(S2, b, h), error.as<double>());
      recurrent_backward(t.head(b, h),
                         {t.rows(dq2, b, h), t.rows(dk2, b, h), t.rows(dv2, b, h),
                          t.series(dbeta2, b, h), t.series(dg2, b, h)},
                         initial, t.rows(t.dout, b, h), t.state(dS2, b, h), scratch);
    }
  const std::string name = "T " + std::to_string(T) + " C " + std::to_string(t.c.C) + " g " +
                           std::to_string(t.c.least_g);
  EXPECT_LT(difference(o, o2), 1e-11) << name;
  EXPECT_LT(difference(S, S2), 1e-11) << name;
  EXPECT_LT(difference(dS, dS2), 1e-11) << name;
  EXPECT_LT(difference(dq, dq2), 1e-11) << name;
  EXPECT_LT(difference(dk, dk2), 1e-11) << name;
  EXPECT_LT(difference(dv, dv2), 1e-11) << name;
  EXPECT_LT(difference(dbeta, dbeta2), 1e-11) << name;
  EXPECT_LT(difference(dg, dg2), 1e-11) << name;
  for (int64_t reset : t.c.resets)
    for (int64_t h = 0; h < H; ++h) EXPECT_EQ(dg.as<double>()[reset * H + h], 0.0) << name;
}

TEST(DeltaRule, ChunkwiseEqualsRecurrent) {
  for (int64_t T : {0, 1, 5, 16, 37, 70})
    for (int64_t C : {1, 4, 16, 64}) check_delta({T, C, -0.3});
}

TEST(DeltaRule, StrongDecay) {
  for (double g : {-20.0, -2.0, 0.0}) check_delta({70, 16, g});
}

TEST(DeltaRule, Resets) {
  for (int64_t C : {1, 16, 64}) {
    check_delta({37, C, -0.3, {0, 5, 6, 16, 37 + 32, 37 + 36}});
    check_delta({37, C, -20, {3, 37}});
  }
  check_delta({1, 16, -0.3, {1}});
}

TEST(DeltaRule, StepsEqualTheScan) {
  DeltaTest t({9, 4, -0.5});
  Bench& bench = t.bench;
  const int64_t B = t.B, H = t.H, K = t.K, V = t.V, T = t.c.T;
  const View o = bench.fresh({B, T, H, V}), S = bench.fresh({B, H, V, K});
  const View S2 = bench.fresh({B, H, V, K}), o2 = bench.fresh({B, H, V});
  ops::delta_scan_forward(
      bench.context, {.o = o, .S_enter = {}, .S_final = S, .S_initial = t.S_initial, .in = t.in});
  std::copy_n(t.S_initial.as<double>(), S2.size(), S2.as<double>());
  for (int64_t s = 0; s < T; ++s) {
    auto token = [&](const View& x, int64_t width) {  // [B,H*width] of token s, made dense
      const View v = bench.fresh({B, H, width});
      for (int64_t b = 0; b < B; ++b)
        std::copy_n(x.as<double>() + (b * T + s) * H * width, H * width,
                    v.as<double>() + b * H * width);
      return v;
    };
    ops::delta_step(bench.context, {.o = o2,
                                    .S = S2,
                                    .q = token(t.in.q, K),
                                    .k = token(t.in.k, K),
                                    .v = token(t.in.v, V),
                                    .beta = token(t.in.beta, 1).reshape({B, H}),
                                    .g = token(t.in.g, 1).reshape({B, H}),
                                    .scale = t.in.scale});
    EXPECT_LT(difference(o2, token(o, V)), 1e-12);
  }
  EXPECT_LT(difference(S2, S), 1e-12);
}

}  // namespace
}  // namespace kla::reference
