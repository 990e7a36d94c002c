// RMSNorm of a row, forward and backward (KERNEL_MATH 10.8). The weight's gradient is summed in one
// partial sum per block of rows, then over the blocks in order.
#include <cmath>

#include "kernels/cpu/blocks.h"
#include "kernels/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/norm.cpp"
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"
#include "kernels/cpu/vector.h"

HWY_BEFORE_NAMESPACE();
namespace kla::cpu::HWY_NAMESPACE {

void ForwardRow(const RmsNormForward& a, int64_t m) {
  const int64_t D = a.x.cols();
  const float *x = row(a.x, m), *w = a.w.as<float>();
  float* y = row(a.y, m);
  const float squares = sum_lanes(D, [&](auto d, int64_t i) HWY_ATTR {
    const auto v = hn::LoadU(d, x + i);
    return hn::Mul(v, v);
  });
  const double mean = static_cast<double>(squares) / static_cast<double>(D);
  const float rstd = static_cast<float>(1 / std::sqrt(mean + a.eps));
  a.rstd.as<float>()[m] = rstd;
  for_lanes(D, [&](auto d, int64_t i) HWY_ATTR {
    const auto xhat = hn::Mul(hn::LoadU(d, x + i), hn::Set(d, rstd));
    hn::StoreU(hn::Mul(hn::LoadU(d, w + i), xhat), d, y + i);
  });
}

// Adds this row's share of the weight gradient to dw[D].
void BackwardRow(const RmsNormBackward& a, int64_t m, float* dw) {
  const int64_t D = a.x.cols();
  const float *x = row(a.x, m), *dy = row(a.dy, m), *w = a.w.as<float>();
  const float* dresidual = a.dresidual.empty() ? nullptr : row(a.dresidual, m);
  float *dx = row(a.dx, m), *dx_copy = a.dx_copy.empty() ? nullptr : row(a.dx_copy, m);
  const float rstd = a.rstd.as<float>()[m];
  const float dot = sum_lanes(D, [&](auto d, int64_t i) HWY_ATTR {
    const auto dy_i = hn::LoadU(d, dy + i);
    const auto dy_xhat = hn::Mul(dy_i, hn::Mul(hn::LoadU(d, x + i), hn::Set(d, rstd)));
    hn::StoreU(hn::Add(hn::LoadU(d, dw + i), dy_xhat), d, dw + i);
    return hn::Mul(dy_xhat, hn::LoadU(d, w + i));
  });
  // dx = dresidual + rstd dy w - (rstd^2 mean) x
  const float along_x = dot / static_cast<float>(D) * rstd * rstd;
  for_lanes(D, [&](auto d, int64_t i) HWY_ATTR {
    const auto h = hn::Mul(hn::LoadU(d, dy + i), hn::LoadU(d, w + i));
    const auto other = dresidual ? hn::LoadU(d, dresidual + i) : hn::Zero(d);
    const auto through = hn::NegMulAdd(hn::Set(d, along_x), hn::LoadU(d, x + i), other);
    const auto sum = hn::MulAdd(hn::Set(d, rstd), h, through);
    hn::StoreU(sum, d, dx + i);
    if (dx_copy) hn::StoreU(sum, d, dx_copy + i);
  });
}

}  // namespace kla::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kla::cpu {
namespace {

HWY_EXPORT(ForwardRow);
HWY_EXPORT(BackwardRow);

void forward(Context& context, const RmsNormForward& a) {
  const Blocks rows{a.x.rows(), kRowsPerTask};
  context.parallel(rows.count(), [&](int64_t task, int) {
    for (int64_t i = 0; i < rows.length(task); ++i)
      HWY_DYNAMIC_DISPATCH(ForwardRow)(a, rows.first(task) + i);
  });
}

void backward(Context& context, const RmsNormBackward& a) {
  const Blocks rows = partial_sum_blocks(a.x.rows());
  const ArenaScope scope(*context.scratch);
  const View partial = context.scratch->allocate(DType::f32, {rows.count(), a.x.cols()});
  context.parallel(rows.count(), [&](int64_t task, int) {
    float* dw = row(partial, task);
    std::fill(dw, dw + partial.cols(), 0.0f);
    for (int64_t i = 0; i < rows.length(task); ++i)
      HWY_DYNAMIC_DISPATCH(BackwardRow)(a, rows.first(task) + i, dw);
  });
  add_partial_sums(context, partial, a.dw);
}

KLA_OP(rms_norm_forward, cpu, forward);
KLA_OP(rms_norm_backward, cpu, backward);

}  // namespace
}  // namespace kla::cpu
#endif
