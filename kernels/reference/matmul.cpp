// Reference matrix products of a linear layer y = x w^T and its two backward products.
#include "kernels/ops.h"
#include "kernels/reference/matrix.h"

namespace kla::reference {
namespace {

template <class T>
void matmul_forward(Context& context, const MatmulForward& a) {
  context.parallel(1, [&](int64_t, int) {
    const Matrix<T> y = matrix<T>(a.y);
    if (a.residual.empty()) {
      fill(y, T(0));
    } else {
      copy(y, matrix<T>(a.residual));
    }
    add_abt(y, matrix<T>(a.x), matrix<T>(a.w));
  });
}

template <class T>
void matmul_backward_input(Context& context, const MatmulBackwardInput& a) {
  context.parallel(1, [&](int64_t, int) {
    const Matrix<T> dx = matrix<T>(a.dx);
    fill(dx, T(0));
    add_ab(dx, matrix<T>(a.dy), matrix<T>(a.w));
  });
}

template <class T>
void matmul_backward_weight(Context& context, const MatmulBackwardWeight& a) {
  context.parallel(
      1, [&](int64_t, int) { add_atb(matrix<T>(a.dw), matrix<T>(a.dy), matrix<T>(a.x)); });
}

KLA_OP(matmul_forward, reference, matmul_forward<double>);
KLA_OP(matmul_backward_input, reference, matmul_backward_input<double>);
KLA_OP(matmul_backward_weight, reference, matmul_backward_weight<double>);

}  // namespace
}  // namespace kla::reference
