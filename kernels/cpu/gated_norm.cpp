// Per-head RMSNorm times silu(gate), forward and backward (KERNEL_MATH 10.7). The weight is shared
// by the heads; its gradient is summed in one partial sum per block of tokens, then over the blocks
// in order.
#include <cmath>

#include "kernels/cpu/blocks.h"
#include "kernels/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gated_norm.cpp"
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"
#include "kernels/cpu/vector_math.h"

HWY_BEFORE_NAMESPACE();
namespace kla::cpu::HWY_NAMESPACE {

void ForwardToken(const GatedRmsNormForward& a, int64_t m) {
  const int64_t V = a.w.cols(), H = a.x.cols() / V;
  const float* w = a.w.as<float>();
  float* rstd = row(a.rstd, m);
  for (int64_t h = 0; h < H; ++h) {
    const float *x = row(a.x, m) + h * V, *gate = row(a.gate, m) + h * V;
    float* y = row(a.y, m) + h * V;
    const float squares = sum_lanes(V, [&](auto d, int64_t i) HWY_ATTR {
      const auto v = hn::LoadU(d, x + i);
      return hn::Mul(v, v);
    });
    const double mean = static_cast<double>(squares) / static_cast<double>(V);
    const float r = static_cast<float>(1 / std::sqrt(mean + a.eps));
    rstd[h] = r;
    for_lanes(V, [&](auto d, int64_t i) HWY_ATTR {
      const auto normed = hn::Mul(hn::LoadU(d, w + i), hn::Mul(hn::LoadU(d, x + i), hn::Set(d, r)));
      hn::StoreU(hn::Mul(normed, silu(d, hn::LoadU(d, gate + i)).value), d, y + i);
    });
  }
}

// Adds this token's share of the weight gradient to dw[V]. The first pass leaves h = dy silu(gate)
// w in dx, which the second needs.
void BackwardToken(const GatedRmsNormBackward& a, int64_t m, float* dw) {
  const int64_t V = a.w.cols(), H = a.x.cols() / V;
  const float* w = a.w.as<float>();
  for (int64_t h = 0; h < H; ++h) {
    const float *x = row(a.x, m) + h * V, *gate = row(a.gate, m) + h * V;
    const float* dy = row(a.dy, m) + h * V;
    float *dx = row(a.dx, m) + h * V, *dgate = row(a.dgate, m) + h * V;
    const float rstd = row(a.rstd, m)[h];
    const float dot = sum_lanes(V, [&](auto d, int64_t i) HWY_ATTR {
      const auto n = hn::Mul(hn::LoadU(d, x + i), hn::Set(d, rstd));
      const auto z = silu(d, hn::LoadU(d, gate + i));
      const auto dy_i = hn::LoadU(d, dy + i), w_i = hn::LoadU(d, w + i);
      const auto dy_silu = hn::Mul(dy_i, z.value), dh = hn::Mul(dy_silu, w_i);
      hn::StoreU(hn::MulAdd(dy_silu, n, hn::LoadU(d, dw + i)), d, dw + i);
      hn::StoreU(hn::Mul(hn::Mul(dy_i, w_i), hn::Mul(n, z.slope)), d, dgate + i);
      hn::StoreU(dh, d, dx + i);
      return hn::Mul(dh, n);
    });
    const float along_x = dot / static_cast<float>(V) * rstd;  // rstd mean(h n), to multiply x
    for_lanes(V, [&](auto d, int64_t i) HWY_ATTR {
      const auto across =
          hn::NegMulAdd(hn::Set(d, along_x), hn::LoadU(d, x + i), hn::LoadU(d, dx + i));
      hn::StoreU(hn::Mul(hn::Set(d, rstd), across), d, dx + i);
    });
  }
}

}  // namespace kla::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kla::cpu {
namespace {

HWY_EXPORT(ForwardToken);
HWY_EXPORT(BackwardToken);

void forward(Context& context, const GatedRmsNormForward& a) {
  const Blocks tokens{a.x.rows(), kRowsPerTask};
  context.parallel(tokens.count(), [&](int64_t task, int) {
    for (int64_t i = 0; i < tokens.length(task); ++i)
      HWY_DYNAMIC_DISPATCH(ForwardToken)(a, tokens.first(task) + i);
  });
}

void backward(Context& context, const GatedRmsNormBackward& a) {
  const Blocks tokens = partial_sum_blocks(a.x.rows());
  const ArenaScope scope(*context.scratch);
  const View partial = context.scratch->allocate(DType::f32, {tokens.count(), a.w.cols()});
  context.parallel(tokens.count(), [&](int64_t task, int) {
    float* dw = row(partial, task);
    std::fill(dw, dw + partial.cols(), 0.0f);
    for (int64_t i = 0; i < tokens.length(task); ++i)
      HWY_DYNAMIC_DISPATCH(BackwardToken)(a, tokens.first(task) + i, dw);
  });
  add_partial_sums(context, partial, a.dw);
}

KLA_OP(gated_rms_norm_forward, cpu, forward);
KLA_OP(gated_rms_norm_backward, cpu, backward);

}  // namespace
}  // namespace kla::cpu
#endif
