// Reference gradient norm and AdamW over flat buffers.
#include <algorithm>
#include <cmath>

#include "kernels/ops.h"
#include "kernels/reference/matrix.h"

namespace kla::reference {
namespace {

template <class T>
void grad_norm(Context& context, const GradNorm& a) {
  context.parallel(1, [&](int64_t, int) {
    const T* g = a.g.as<T>();
    *a.norm.as<double>() = std::sqrt(static_cast<double>(dot(g, g, a.g.size())));
  });
}

// Factor that brings the gradient's norm down to max_norm.
double clip_factor(const Adamw& a) {
  return a.max_norm > 0 ? std::min(1.0, a.max_norm / (*a.norm.as<double>() + 1e-6)) : 1.0;
}

template <class T>
void adamw(Context& context, const Adamw& a) {
  context.parallel(1, [&](int64_t, int) {
    T *w = a.w.as<T>(), *m = a.m.as<T>(), *v = a.v.as<T>();
    T* copy = a.copy.empty() ? nullptr : a.copy.as<T>();
    const T* g = a.g.as<T>();
    const T lr = static_cast<T>(a.lr), eps = static_cast<T>(a.eps);
    const T b1 = static_cast<T>(a.beta1), b2 = static_cast<T>(a.beta2);
    const T clip = static_cast<T>(clip_factor(a));
    const T correct1 = 1 - static_cast<T>(std::pow(a.beta1, a.step));
    const T correct2 = 1 - static_cast<T>(std::pow(a.beta2, a.step));
    for (int64_t s = 0; s < a.segment_count; ++s) {
      const AdamwSegment& segment = a.segments[s];
      if (!segment.trained) continue;
      const T keep = segment.decay ? 1 - lr * static_cast<T>(a.weight_decay) : T(1);
      for (int64_t i = segment.first; i < segment.first + segment.count; ++i) {
        const T gradient = clip * g[i];
        m[i] = b1 * m[i] + (1 - b1) * gradient;
        v[i] = b2 * v[i] + (1 - b2) * gradient * gradient;
        w[i] = w[i] * keep - lr * (m[i] / correct1) / (std::sqrt(v[i] / correct2) + eps);
        if (copy) copy[i] = w[i];
      }
    }
  });
}

KLA_OP(grad_norm, reference, grad_norm<double>);
KLA_OP(adamw, reference, adamw<double>);

}  // namespace
}  // namespace kla::reference
