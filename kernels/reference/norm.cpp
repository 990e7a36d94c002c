// Reference RMSNorm: one row after the other (KERNEL_MATH 10.8).
#include "kernels/ops.h"
#include "kernels/reference/pieces.h"

namespace kla::reference {
namespace {

template <class T>
void rms_norm_forward(Context& context, const RmsNormForward& a) {
  const Matrix<T> y = matrix<T>(a.y), x = matrix<T>(a.x);
  context.parallel(1, [&](int64_t, int) {
    const T* w = a.w.as<T>();
    T* rstd = a.rstd.as<T>();
    for (int64_t m = 0; m < x.rows; ++m)
      rstd[m] = rms_norm_row_forward(y[m], x[m], w, x.cols, static_cast<T>(a.eps));
  });
}

template <class T>
void rms_norm_backward(Context& context, const RmsNormBackward& a) {
  const Matrix<T> dx = matrix<T>(a.dx), dy = matrix<T>(a.dy), x = matrix<T>(a.x);
  const Matrix<T> residual = matrix<T>(a.dresidual), dx_copy = matrix<T>(a.dx_copy);
  context.parallel(1, [&](int64_t, int) {
    const T *w = a.w.as<T>(), *rstd = a.rstd.as<T>();
    T* dw = a.dw.as<T>();
    for (int64_t m = 0; m < x.rows; ++m) {
      const T* other = residual.data ? residual[m] : nullptr;
      rms_norm_row_backward(dx[m], dw, other, dy[m], x[m], w, x.cols, rstd[m]);
      if (dx_copy.data) std::copy_n(dx[m], x.cols, dx_copy[m]);
    }
  });
}

KLA_OP(rms_norm_forward, reference, rms_norm_forward<double>);
KLA_OP(rms_norm_backward, reference, rms_norm_backward<double>);

}  // namespace
}  // namespace kla::reference
