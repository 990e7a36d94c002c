// SwiGLU, forward and backward (KERNEL_MATH 10.9). Elementwise, so memory sets the pace.
#include "kernels/cpu/blocks.h"
#include "kernels/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/swiglu.cpp"
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"
#include "kernels/cpu/vector_math.h"

HWY_BEFORE_NAMESPACE();
namespace kla::cpu::HWY_NAMESPACE {

void ForwardRow(const SwigluForward& a, int64_t m) {
  const float *gate = row(a.gate, m), *up = row(a.up, m);
  float* y = row(a.y, m);
  for_lanes(a.y.cols(), [&](auto d, int64_t i) HWY_ATTR {
    const auto s = silu(d, hn::LoadU(d, gate + i));
    hn::StoreU(hn::Mul(s.value, hn::LoadU(d, up + i)), d, y + i);
  });
}

void BackwardRow(const SwigluBackward& a, int64_t m) {
  const float *gate = row(a.gate, m), *up = row(a.up, m), *dy = row(a.dy, m);
  float *dgate = row(a.dgate, m), *dup = row(a.dup, m);
  for_lanes(a.dy.cols(), [&](auto d, int64_t i) HWY_ATTR {
    const auto s = silu(d, hn::LoadU(d, gate + i));
    const auto dy_i = hn::LoadU(d, dy + i), up_i = hn::LoadU(d, up + i);
    hn::StoreU(hn::Mul(hn::Mul(dy_i, up_i), s.slope), d, dgate + i);
    hn::StoreU(hn::Mul(dy_i, s.value), d, dup + i);
  });
}

}  // namespace kla::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kla::cpu {
namespace {

HWY_EXPORT(ForwardRow);
HWY_EXPORT(BackwardRow);

void forward(Context& context, const SwigluForward& a) {
  const Blocks rows{a.y.rows(), kRowsPerTask};
  context.parallel(rows.count(), [&](int64_t task, int) {
    for (int64_t i = 0; i < rows.length(task); ++i)
      HWY_DYNAMIC_DISPATCH(ForwardRow)(a, rows.first(task) + i);
  });
}

void backward(Context& context, const SwigluBackward& a) {
  const Blocks rows{a.dy.rows(), kRowsPerTask};
  context.parallel(rows.count(), [&](int64_t task, int) {
    for (int64_t i = 0; i < rows.length(task); ++i)
      HWY_DYNAMIC_DISPATCH(BackwardRow)(a, rows.first(task) + i);
  });
}

KLA_OP(swiglu_forward, cpu, forward);
KLA_OP(swiglu_backward, cpu, backward);

}  // namespace
}  // namespace kla::cpu
#endif
