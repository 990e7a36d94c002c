// Reference SwiGLU: y = silu(gate) o up (KERNEL_MATH 10.9).
#include "kernels/ops.h"
#include "kernels/reference/pieces.h"

namespace kla::reference {
namespace {

template <class T>
void swiglu_forward(Context& context, const SwigluForward& a) {
  const Matrix<T> y = matrix<T>(a.y), gate = matrix<T>(a.gate), up = matrix<T>(a.up);
  context.parallel(1, [&](int64_t, int) {
    for (int64_t m = 0; m < y.rows; ++m)
      for (int64_t f = 0; f < y.cols; ++f) y[m][f] = silu_forward(gate[m][f]) * up[m][f];
  });
}

// Reads before it writes, element by element: dgate and dup may be the memory of gate and up.
template <class T>
void swiglu_backward(Context& context, const SwigluBackward& a) {
  const Matrix<T> dgate = matrix<T>(a.dgate), dup = matrix<T>(a.dup), dy = matrix<T>(a.dy);
  const Matrix<T> gate = matrix<T>(a.gate), up = matrix<T>(a.up);
  context.parallel(1, [&](int64_t, int) {
    for (int64_t m = 0; m < dy.rows; ++m) {
      for (int64_t f = 0; f < dy.cols; ++f) {
        const T z = gate[m][f], u = up[m][f], dout = dy[m][f];
        dgate[m][f] = silu_backward(z, dout * u);
        dup[m][f] = dout * silu_forward(z);
      }
    }
  });
}

KLA_OP(swiglu_forward, reference, swiglu_forward<double>);
KLA_OP(swiglu_backward, reference, swiglu_backward<double>);

}  // namespace
}  // namespace kla::reference
