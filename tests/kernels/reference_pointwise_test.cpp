// The reference's ops outside the mixer by finite differences, and AdamW against hand arithmetic.
#include "tests/kernels/reference_bench.h"

namespace kla::reference {
namespace {

View tokens(std::vector<int32_t>& values) {
  return {values.data(), {static_cast<int64_t>(values.size())}};
}

TEST(Pointwise, RmsNorm) {
  Bench bench;
  const int64_t M = 3, D = 5;
  const View x = bench.random({M, D}), w = bench.random({D}), y = bench.fresh({M, D});
  const View rstd = bench.fresh({M}), dy = bench.random({M, D}), dx = bench.random({M, D});
  const View other = bench.fresh({M, D}), dw = bench.ones({D});
  copy(matrix<double>(other), matrix<double>(dx));
  auto loss = [&] {
    ops::rms_norm_forward(bench.context, {.y = y, .rstd = rstd, .x = x, .w = w, .eps = 1e-2});
    return inner(y, dy) + inner(x, other);
  };
  loss();
  ops::rms_norm_backward(
      bench.context, {.dx = dx, .dw = dw, .dresidual = dx, .dy = dy, .x = x, .w = w, .rstd = rstd});
  check_gradients(bench, loss, {{"x", x, dx}, {"w", w, dw, 1}}, "rms_norm");
}

TEST(Pointwise, GatedRmsNorm) {
  Bench bench;
  const int64_t M = 3, H = 2, V = 4;
  const View x = bench.random({M, H * V}), gate = bench.random({M, H * V}), w = bench.random({V});
  const View y = bench.fresh({M, H * V}), rstd = bench.fresh({M, H});
  const View dy = bench.random({M, H * V}), dx = bench.fresh({M, H * V});
  const View dgate = bench.fresh({M, H * V}), dw = bench.ones({V});
  auto loss = [&] {
    ops::gated_rms_norm_forward(bench.context,
                                {.y = y, .rstd = rstd, .x = x, .gate = gate, .w = w, .eps = 1e-2});
    return inner(y, dy);
  };
  loss();
  ops::gated_rms_norm_backward(
      bench.context,
      {.dx = dx, .dgate = dgate, .dw = dw, .dy = dy, .x = x, .gate = gate, .w = w, .rstd = rstd});
  check_gradients(bench, loss, {{"x", x, dx}, {"gate", gate, dgate}, {"w", w, dw, 1}},
                  "gated_rms_norm");
}

TEST(Pointwise, Swiglu) {
  Bench bench;
  const int64_t M = 3, F = 4;
  const View both = bench.random({M, 2 * F}), dboth = bench.fresh({M, 2 * F});
  const View y = bench.fresh({M, F}), dy = bench.random({M, F});
  auto loss = [&] {
    ops::swiglu_forward(bench.context,
                        {.y = y, .gate = both.columns(0, F), .up = both.columns(F, F)});
    return inner(y, dy);
  };
  ops::swiglu_backward(bench.context, {.dgate = dboth.columns(0, F),
                                       .dup = dboth.columns(F, F),
                                       .dy = dy,
                                       .gate = both.columns(0, F),
                                       .up = both.columns(F, F)});
  check_gradients(bench, loss, {{"gate and up", both, dboth}}, "swiglu");
}

TEST(Pointwise, EmbeddingAndMatmul) {
  Bench bench;
  const int64_t M = 4, N = 3, D = 5;
  std::vector<int32_t> ids{2, 0, 2, 1};
  const View table = bench.random({N, D}), x = bench.fresh({M, D}), w = bench.random({N, D});
  const View residual = bench.random({M, N}), y = bench.fresh({M, N}), dy = bench.random({M, N});
  const View dx = bench.fresh({M, D}), dw = bench.ones({N, D}), dtable = bench.ones({N, D});
  auto loss = [&] {
    ops::embedding_forward(bench.context, {.x = x, .tokens = tokens(ids), .table = table});
    ops::matmul_forward(bench.context, {.y = y, .x = x, .w = w, .residual = residual});
    return inner(y, dy);
  };
  loss();
  ops::matmul_backward_weight(bench.context, {.dw = dw, .dy = dy, .x = x});
  ops::matmul_backward_input(bench.context, {.dx = dx, .dy = dy, .w = w});
  ops::embedding_backward(bench.context, {.dtable = dtable, .dx = dx, .tokens = tokens(ids)});
  check_gradients(bench, loss,
                  {{"table", table, dtable, 1}, {"w", w, dw, 1}, {"residual", residual, dy}},
                  "matmul of embedding");
  const View once = bench.fresh({M, D});
  copy(matrix<double>(once), matrix<double>(dx));
  ops::matmul_backward_input(bench.context, {.dx = dx, .dy = dy, .w = w, .accumulate = true});
  for (int64_t i = 0; i < M * D; ++i)
    EXPECT_DOUBLE_EQ(dx.as<double>()[i], 2 * once.as<double>()[i]);
}

TEST(Pointwise, LmHeadLoss) {
  Bench bench;
  const int64_t M = 4, N = 6, D = 3;
  std::vector<int32_t> ids{5, -1, 0, 2};
  const View x = bench.random({M, D}), w = bench.random({N, D}), losses = bench.fresh({M});
  const View dx = bench.fresh({M, D}), dw = bench.ones({N, D});
  const double grad_scale = 0.3;
  auto loss = [&] {
    ops::lm_head_loss(
        bench.context,
        {.losses = losses, .dx = {}, .dw = {}, .x = x, .w = w, .targets = tokens(ids)});
    double sum = 0;
    for (int64_t m = 0; m < M; ++m) sum += losses.as<double>()[m];
    return grad_scale * sum;
  };
  ops::lm_head_loss(bench.context, {.losses = losses,
                                    .dx = dx,
                                    .dw = dw,
                                    .x = x,
                                    .w = w,
                                    .targets = tokens(ids),
                                    .grad_scale = grad_scale});
  EXPECT_EQ(losses.as<double>()[1], 0.0);
  EXPECT_EQ(dx.as<double>()[D], 0.0);
  check_gradients(bench, loss, {{"x", x, dx}, {"w", w, dw, 1}}, "lm_head_loss");
}

TEST(Pointwise, AdamwBySteps) {
  Bench bench;
  double w[]{1, 1, 1}, m[]{0.5, 0.5, 0.5}, v[]{0.25, 0.25, 0.25}, copied[]{7, 7, 7}, norm = 0;
  double g[]{3, 4, 0};
  ops::grad_norm(bench.context, {.norm = View(&norm, {1}), .g = View(g, {3})});
  EXPECT_DOUBLE_EQ(norm, 5);
  const AdamwSegment segments[]{{0, 1, true, true}, {1, 1, false, true}, {2, 1, true, false}};
  ops::adamw(bench.context, {.w = View(w, {3}),
                             .m = View(m, {3}),
                             .v = View(v, {3}),
                             .copy = View(copied, {3}),
                             .g = View(g, {3}),
                             .norm = View(&norm, {1}),
                             .segments = segments,
                             .segment_count = 3,
                             .lr = 0.1,
                             .beta1 = 0.9,
                             .beta2 = 0.95,
                             .eps = 1e-8,
                             .weight_decay = 0.2,
                             .max_norm = 1,
                             .step = 2});
  for (int i = 0; i < 2; ++i) {
    const double clipped = g[i] / (5 + 1e-6);
    const double mean = 0.9 * 0.5 + 0.1 * clipped, square = 0.95 * 0.25 + 0.05 * clipped * clipped;
    const double update = (mean / (1 - 0.81)) / (std::sqrt(square / (1 - 0.9025)) + 1e-8);
    EXPECT_DOUBLE_EQ(m[i], mean);
    EXPECT_DOUBLE_EQ(v[i], square);
    EXPECT_DOUBLE_EQ(w[i], (i == 0 ? 1 - 0.1 * 0.2 : 1) - 0.1 * update);
    EXPECT_EQ(copied[i], w[i]);
  }
  EXPECT_EQ(w[2], 1);  // not trained: nothing moves
  EXPECT_EQ(m[2], 0.5);
  EXPECT_EQ(copied[2], 7);
}

}  // namespace
}  // namespace kla::reference
