// Reference gated RMSNorm per head: y = w o (x rstd) o silu(gate) (KERNEL_MATH 10.7).
#include "kernels/ops.h"
#include "kernels/reference/pieces.h"

namespace kla::reference {
namespace {

template <class T>
void gated_rms_norm_forward(Context& context, const GatedRmsNormForward& a) {
  const Matrix<T> y = matrix<T>(a.y), x = matrix<T>(a.x), gate = matrix<T>(a.gate);
  const Matrix<T> rstd = matrix<T>(a.rstd);
  const int64_t V = a.w.size(), H = x.cols / V;
  context.parallel(1, [&](int64_t, int) {
    const T* w = a.w.as<T>();
    for (int64_t m = 0; m < x.rows; ++m) {
      for (int64_t h = 0; h < H; ++h) {
        T* row = y[m] + h * V;
        rstd[m][h] = rms_norm_row_forward(row, x[m] + h * V, w, V, static_cast<T>(a.eps));
        for (int64_t i = 0; i < V; ++i) row[i] *= silu_forward(gate[m][h * V + i]);
      }
    }
  });
}

// The gradient of the normed row is dy o silu(gate); that of silu(gate) is dy o w o xhat.
template <class T>
void gated_rms_norm_backward(Context& context, const GatedRmsNormBackward& a) {
  const Matrix<T> dx = matrix<T>(a.dx), dgate = matrix<T>(a.dgate), dy = matrix<T>(a.dy);
  const Matrix<T> x = matrix<T>(a.x), gate = matrix<T>(a.gate), rstd = matrix<T>(a.rstd);
  const int64_t V = a.w.size(), H = x.cols / V;
  ArenaScope scope(*context.scratch);
  T* dnormed = context.scratch->allocate<T>(V);
  context.parallel(1, [&](int64_t, int) {
    const T* w = a.w.as<T>();
    T* dw = a.dw.as<T>();
    for (int64_t m = 0; m < x.rows; ++m) {
      for (int64_t h = 0; h < H; ++h) {
        for (int64_t i = 0; i < V; ++i) {
          const int64_t c = h * V + i;
          const T z = gate[m][c], dout = dy[m][c];
          dnormed[i] = dout * silu_forward(z);
          dgate[m][c] = silu_backward(z, dout * w[i] * x[m][c] * rstd[m][h]);
        }
        rms_norm_row_backward(dx[m] + h * V, dw, static_cast<const T*>(nullptr), dnormed,
                              x[m] + h * V, w, V, rstd[m][h]);
      }
    }
  });
}

KLA_OP(gated_rms_norm_forward, reference, gated_rms_norm_forward<double>);
KLA_OP(gated_rms_norm_backward, reference, gated_rms_norm_backward<double>);

}  // namespace
}  // namespace kla::reference
