// One token of the gated delta rule on the state [V][K]: a single pass over the state, constant
// time per token. One task per sequence and head.
#include <cmath>

#include "kernels/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/delta_step.cpp"
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"
#include "kernels/cpu/vector.h"

#ifndef KLA_DELTA_STEP_HEAD
#define KLA_DELTA_STEP_HEAD
namespace kla::cpu {
struct StepHead {
  int64_t K, V, ld;
  float *S, *o;
  const float *q, *k, *v;
  float beta, decay, scale;
};
}  // namespace kla::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace kla::cpu::HWY_NAMESPACE {

void StepOneHead(const StepHead& a) {
  for (int64_t v = 0; v < a.V; ++v) {
    float* row = a.S + v * a.ld;
    const float known = a.decay * sum_lanes(a.K, [&](auto d, int64_t j) KLA_LANES_INLINE {
                          return hn::Mul(hn::LoadU(d, row + j), hn::LoadU(d, a.k + j));
                        });
    const float write = a.beta * (a.v[v] - known);
    const float out = sum_lanes(a.K, [&](auto d, int64_t j) KLA_LANES_INLINE {
      const auto kept = hn::Mul(hn::Set(d, a.decay), hn::LoadU(d, row + j));
      const auto s = hn::MulAdd(hn::Set(d, write), hn::LoadU(d, a.k + j), kept);
      hn::StoreU(s, d, row + j);
      return hn::Mul(s, hn::LoadU(d, a.q + j));
    });
    a.o[v] = a.scale * out;
  }
}

}  // namespace kla::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kla::cpu {

namespace {

HWY_EXPORT(StepOneHead);

void step(Context& context, const DeltaStep& a) {
  const int64_t B = a.S.dim(0), H = a.S.dim(1), V = a.S.dim(2), K = a.S.dim(3);
  context.parallel(B * H, [&](int64_t i, int) {
    const int64_t b = i / H, h = i % H;
    HWY_DYNAMIC_DISPATCH(StepOneHead)
    ({.K = K,
      .V = V,
      .ld = a.S.stride,
      .S = a.S.as<float>() + i * V * a.S.stride,
      .o = a.o.as<float>() + i * a.o.stride,
      .q = a.q.as<float>() + i * a.q.stride,
      .k = a.k.as<float>() + i * a.k.stride,
      .v = a.v.as<float>() + i * a.v.stride,
      .beta = a.beta.as<float>()[b * a.beta.stride + h],
      .decay = std::exp(a.g.as<float>()[b * a.g.stride + h]),
      .scale = static_cast<float>(a.scale)});
  });
}

KLA_OP(delta_step, cpu, step);

}  // namespace

}  // namespace kla::cpu
#endif
