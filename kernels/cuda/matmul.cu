// The linear layers' three products. A gradient that arrives in f32 (of the gates' logits) is
// rounded to the compute type first, since the tensor cores take operands of one type.
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/vector.cuh"
#include "kernels/ops.h"

namespace kla::KLA_BACKEND {
namespace {

__global__ void round_kernel(bfloat16* to, Rows<float> from, int64_t N) {
  const int64_t m = blockIdx.x;
  for (int64_t c = threadIdx.x; c < N; c += blockDim.x)
    to[m * N + c] = static_cast<bfloat16>(from[m][c]);
}

// dy in the compute type; takes scratch if it has to be rounded.
View as_operand(Context& context, const View& dy) {
  if (dy.dtype == context.compute) return dy;
  const View rounded = context.scratch->allocate(DType::bf16, {dy.rows(), dy.cols()});
  launch(context, round_kernel,
         Shape{dim3(static_cast<unsigned>(dy.rows())), row_threads(dy.cols(), 1)},
         pointer<bfloat16>(rounded), rows<float>(dy), dy.cols());
  return rounded;
}

void forward(Context& context, const MatmulForward& a) {
  gemm(context, {GemmForm::transposed_b, a.y, a.x, a.w, a.residual});
}

void backward_input(Context& context, const MatmulBackwardInput& a) {
  const ArenaScope scope(*context.scratch);
  const View dy = as_operand(context, a.dy);
  gemm(context, {GemmForm::plain, a.dx, dy, a.w, a.accumulate ? a.dx : View()});
}

void backward_weight(Context& context, const MatmulBackwardWeight& a) {
  const ArenaScope scope(*context.scratch);
  const View dy = as_operand(context, a.dy);
  gemm(context, {GemmForm::transposed_a, a.dw, dy, a.x, a.dw});
}

KLA_OP(matmul_forward, KLA_BACKEND, forward);
KLA_OP(matmul_backward_input, KLA_BACKEND, backward_input);
KLA_OP(matmul_backward_weight, KLA_BACKEND, backward_weight);

}  // namespace
}  // namespace kla::KLA_BACKEND
