// The linear layers' three products.
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/runtime.h"
#include "kernels/ops.h"

namespace kla::KLA_BACKEND {
namespace {

void forward(Context& context, const MatmulForward& a) {
  gemm(context, {GemmForm::transposed_b, a.y, a.x, a.w, a.residual});
}

void backward_input(Context& context, const MatmulBackwardInput& a) {
  gemm(context, {GemmForm::plain, a.dx, a.dy, a.w, View()});
}

void backward_weight(Context& context, const MatmulBackwardWeight& a) {
  gemm(context, {GemmForm::transposed_a, a.dw, a.dy, a.x, a.dw});
}

KLA_OP(matmul_forward, KLA_BACKEND, forward);
KLA_OP(matmul_backward_input, KLA_BACKEND, backward_input);
KLA_OP(matmul_backward_weight, KLA_BACKEND, backward_weight);

}  // namespace
}  // namespace kla::KLA_BACKEND
