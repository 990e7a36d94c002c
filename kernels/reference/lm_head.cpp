// Reference language-model head: logits of one token at a time, its cross entropy and gradients
// (KERNEL_MATH 10.10).
#include "kernels/ops.h"
#include "kernels/reference/pieces.h"

namespace kla::reference {
namespace {

template <class T>
void lm_head_loss(Context& context, const LmHeadLoss& a) {
  const Matrix<T> x = matrix<T>(a.x), w = matrix<T>(a.w);
  const Matrix<T> dx = matrix<T>(a.dx), dw = matrix<T>(a.dw);
  const int64_t D = x.cols, N = w.rows;
  ArenaScope scope(*context.scratch);
  T* z = context.scratch->allocate<T>(N);
  context.parallel(1, [&](int64_t, int) {
    const int32_t* targets = a.targets.as<int32_t>();
    T* losses = a.losses.as<T>();
    if (dx.data) fill(dx, T(0));
    for (int64_t m = 0; m < x.rows; ++m) {
      losses[m] = 0;
      if (targets[m] < 0) continue;
      for (int64_t n = 0; n < N; ++n) z[n] = dot(x[m], w[n], D);
      losses[m] = cross_entropy_forward(z, N, targets[m]);
      if (!dx.data) continue;
      cross_entropy_backward(z, z, N, targets[m], static_cast<T>(a.grad_scale));
      for (int64_t n = 0; n < N; ++n) {
        add_scaled(dx[m], z[n], w[n], D);
        add_scaled(dw[n], z[n], x[m], D);
      }
    }
  });
}

KLA_OP(lm_head_loss, reference, lm_head_loss<double>);

}  // namespace
}  // namespace kla::reference
