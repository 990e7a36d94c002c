// Gradient norm and AdamW over flat buffers, each in one pass: memory sets the pace.
#include <cmath>

#include "kernels/cpu/blocks.h"
#include "kernels/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/optimizer.cpp"
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"
#include "kernels/cpu/vector.h"

HWY_BEFORE_NAMESPACE();
namespace kla::cpu::HWY_NAMESPACE {

// In double: the sum over millions of squares must not lose the small ones.
double SumOfSquares(const float* g, int64_t n) {
  const hn::CappedTag<double, 8> d;
  const hn::Rebind<float, decltype(d)> df;
  const int64_t step = static_cast<int64_t>(hn::Lanes(d));
  auto even = hn::Zero(d), odd = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * step <= n; i += 2 * step) {
    const auto a = hn::PromoteTo(d, hn::LoadU(df, g + i));
    const auto b = hn::PromoteTo(d, hn::LoadU(df, g + i + step));
    even = hn::MulAdd(a, a, even);
    odd = hn::MulAdd(b, b, odd);
  }
  double sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
  for (; i < n; ++i) sum += static_cast<double>(g[i]) * g[i];
  return sum;
}

// Elements [first, first + count), which are of one segment. The scalars are worked out in double.
void Update(const Adamw& a, int64_t first, int64_t count, bool decay) {
  const double norm = a.norm.as<double>()[0] + 1e-6, t = static_cast<double>(a.step);
  const bool clipped = a.max_norm > 0 && !(norm <= a.max_norm);  // a NaN norm goes through
  const float clip = static_cast<float>(clipped ? a.max_norm / norm : 1);
  const float keep_m = static_cast<float>(a.beta1), take_m = static_cast<float>(1 - a.beta1);
  const float keep_v = static_cast<float>(a.beta2), take_v = static_cast<float>(1 - a.beta2);
  const float rate = static_cast<float>(a.lr / (1 - std::pow(a.beta1, t)));
  const float correction_v = static_cast<float>(1 / (1 - std::pow(a.beta2, t)));
  const float eps = static_cast<float>(a.eps);
  const float shrink = decay ? static_cast<float>(1 - a.lr * a.weight_decay) : 1.0f;

  float *w = a.w.as<float>() + first, *m = a.m.as<float>() + first, *v = a.v.as<float>() + first;
  const float* g = a.g.as<float>() + first;
  float* copy = a.copy.empty() ? nullptr : a.copy.as<float>() + first;
  for_lanes(count, [&](auto d, int64_t i) HWY_ATTR {
    const auto cg = hn::Mul(hn::Set(d, clip), hn::LoadU(d, g + i));
    const auto m_i =
        hn::MulAdd(hn::Set(d, keep_m), hn::LoadU(d, m + i), hn::Mul(hn::Set(d, take_m), cg));
    const auto v_i = hn::MulAdd(hn::Set(d, keep_v), hn::LoadU(d, v + i),
                                hn::Mul(hn::Set(d, take_v), hn::Mul(cg, cg)));
    const auto root = hn::Sqrt(hn::Mul(v_i, hn::Set(d, correction_v)));
    const auto move = hn::Div(hn::Mul(hn::Set(d, rate), m_i), hn::Add(root, hn::Set(d, eps)));
    const auto w_i = hn::MulSub(hn::Set(d, shrink), hn::LoadU(d, w + i), move);
    hn::StoreU(m_i, d, m + i);
    hn::StoreU(v_i, d, v + i);
    hn::StoreU(w_i, d, w + i);
    if (copy) hn::StoreU(w_i, d, copy + i);
  });
}

}  // namespace kla::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kla::cpu {
namespace {

HWY_EXPORT(SumOfSquares);
HWY_EXPORT(Update);

constexpr int64_t kElementsPerTask = 1 << 16;

void norm(Context& context, const GradNorm& a) {
  const Blocks blocks{a.g.size(), kElementsPerTask};
  const ArenaScope scope(*context.scratch);
  double* partial = context.scratch->allocate<double>(blocks.count());
  context.parallel(blocks.count(), [&](int64_t task, int) {
    partial[task] = HWY_DYNAMIC_DISPATCH(SumOfSquares)(a.g.as<float>() + blocks.first(task),
                                                       blocks.length(task));
  });
  context.parallel(1, [&](int64_t, int) {
    double sum = 0;
    for (int64_t i = 0; i < blocks.count(); ++i) sum += partial[i];
    a.norm.as<double>()[0] = std::sqrt(sum);
  });
}

void update(Context& context, const Adamw& a) {
  const Blocks blocks{a.w.size(), kElementsPerTask};
  context.parallel(blocks.count(), [&](int64_t task, int) {
    const int64_t first = blocks.first(task), last = first + blocks.length(task);
    for (int64_t i = 0; i < a.segment_count; ++i) {
      const AdamwSegment& segment = a.segments[i];
      const int64_t from = std::max(first, segment.first);
      const int64_t to = std::min(last, segment.first + segment.count);
      if (segment.trained && from < to)
        HWY_DYNAMIC_DISPATCH(Update)(a, from, to - from, segment.decay);
    }
  });
}

KLA_OP(grad_norm, cpu, norm);
KLA_OP(adamw, cpu, update);

}  // namespace
}  // namespace kla::cpu
#endif
