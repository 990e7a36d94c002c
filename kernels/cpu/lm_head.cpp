// Language-model head and cross-entropy in one op (KERNEL_MATH 10.10), a chunk of tokens at a time:
// logits, their log-sum-exp, the gradient of the logits in their place, and the two products that
// use it. Only one chunk of logits exists.
#include <cmath>
#include <string>

#include "core/error.h"
#include "kernels/cpu/blocks.h"
#include "kernels/cpu/panel_gemm.h"
#include "kernels/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/lm_head.cpp"
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"
#include "kernels/cpu/vector_math.h"

HWY_BEFORE_NAMESPACE();
namespace kla::cpu::HWY_NAMESPACE {

float Largest(const float* x, int64_t n) {
  float top = x[0];
  const Lanes d;
  const int64_t step = static_cast<int64_t>(hn::Lanes(d));
  auto tops = hn::Set(d, top);
  int64_t i = 0;
  for (; i + step <= n; i += step) tops = hn::Max(tops, hn::LoadU(d, x + i));
  top = hn::GetLane(hn::MaxOfLanes(d, tops));
  for (; i < n; ++i) top = std::max(top, x[i]);
  return top;
}

// Turns the logits of one token into e^(logit - top); returns their sum and sets top.
float Exponentials(float* logits, int64_t N, float* top) {
  *top = Largest(logits, N);
  const float shift = *top;
  return sum_lanes(N, [&](auto d, int64_t n) HWY_ATTR {
    const auto e = exp(d, hn::Sub(hn::LoadU(d, logits + n), hn::Set(d, shift)));
    hn::StoreU(e, d, logits + n);
    return e;
  });
}

void Scale(float* x, int64_t n, float factor) {
  for_lanes(n, [&](auto d, int64_t i) HWY_ATTR {
    hn::StoreU(hn::Mul(hn::Set(d, factor), hn::LoadU(d, x + i)), d, x + i);
  });
}

}  // namespace kla::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kla::cpu {
namespace {

HWY_EXPORT(Exponentials);
HWY_EXPORT(Scale);

// Enough tokens that adding a chunk's share to dw costs little; 64 MB of logits at N = 32000.
constexpr int64_t kTokensPerChunk = 512;
constexpr int64_t kTokensPerTask = 8;

// The loss of one token from its logits; with a gradient, that replaces them.
float loss_of(float* logits, int64_t N, int64_t target, bool gradient, float grad_scale) {
  if (target < 0) {
    if (gradient) std::fill(logits, logits + N, 0.0f);
    return 0;
  }
  KLA_CHECK(target < N,
            "target " + std::to_string(target) + " of a vocabulary of " + std::to_string(N));
  const float logit = logits[target];
  float top;
  const float sum = HWY_DYNAMIC_DISPATCH(Exponentials)(logits, N, &top);
  if (gradient) {
    HWY_DYNAMIC_DISPATCH(Scale)(logits, N, grad_scale / sum);
    logits[target] -= grad_scale;
  }
  return std::log(sum) + (top - logit);
}

void loss(Context& context, const LmHeadLoss& a) {
  const int64_t N = a.w.rows(), D = a.w.cols();
  const bool gradient = !a.dx.empty();
  const float grad_scale = static_cast<float>(a.grad_scale);
  const Blocks chunks{a.x.rows(), kTokensPerChunk};
  const ArenaScope scope(*context.scratch);
  const View logits =
      context.scratch->allocate(DType::f32, {std::min(a.x.rows(), kTokensPerChunk), N});
  for (int64_t chunk = 0; chunk < chunks.count(); ++chunk) {
    const int64_t first = chunks.first(chunk), count = chunks.length(chunk);
    const View x = a.x.row_range(first, count);
    panel_gemm(context, {.form = Form::transposed_b,
                         .m = count,
                         .n = N,
                         .k = D,
                         .a = tile(x),
                         .b = tile(a.w),
                         .c = mutable_tile(logits)});
    const Blocks tokens{count, kTokensPerTask};
    context.parallel(tokens.count(), [&](int64_t task, int) {
      for (int64_t i = 0; i < tokens.length(task); ++i) {
        const int64_t m = tokens.first(task) + i;
        a.losses.as<float>()[first + m] =
            loss_of(row(logits, m), N, a.targets.as<int32_t>()[first + m], gradient, grad_scale);
      }
    });
    if (!gradient) continue;
    panel_gemm(context, {.form = Form::plain,
                         .m = count,
                         .n = D,
                         .k = N,
                         .a = tile(logits),
                         .b = tile(a.w),
                         .c = mutable_tile(a.dx.row_range(first, count))});
    panel_gemm(context, {.form = Form::transposed_a,
                         .m = N,
                         .n = D,
                         .k = count,
                         .a = tile(logits),
                         .b = tile(x),
                         .c = mutable_tile(a.dw),
                         .added = tile(a.dw)});
  }
}

KLA_OP(lm_head_loss, cpu, loss);

}  // namespace
}  // namespace kla::cpu
#endif
