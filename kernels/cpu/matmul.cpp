// The linear layers' three products. No partial sums: the weight's gradient is cut over its own
// rows and columns, and every task runs over all tokens.
#include "kernels/cpu/panel_gemm.h"
#include "kernels/ops.h"

namespace kla::cpu {
namespace {

void forward(Context& context, const MatmulForward& a) {
  panel_gemm(context, {.form = Form::transposed_b,
                       .m = a.x.rows(),
                       .n = a.w.rows(),
                       .k = a.w.cols(),
                       .a = tile(a.x),
                       .b = tile(a.w),
                       .c = mutable_tile(a.y),
                       .added = a.residual.empty() ? Tile{nullptr, 0} : tile(a.residual)});
}

void backward_input(Context& context, const MatmulBackwardInput& a) {
  panel_gemm(context, {.form = Form::plain,
                       .m = a.dy.rows(),
                       .n = a.w.cols(),
                       .k = a.w.rows(),
                       .a = tile(a.dy),
                       .b = tile(a.w),
                       .c = mutable_tile(a.dx),
                       .added = {nullptr, 0}});
}

void backward_weight(Context& context, const MatmulBackwardWeight& a) {
  panel_gemm(context, {.form = Form::transposed_a,
                       .m = a.dw.rows(),
                       .n = a.dw.cols(),
                       .k = a.x.rows(),
                       .a = tile(a.dy),
                       .b = tile(a.x),
                       .c = mutable_tile(a.dw),
                       .added = tile(a.dw)});
}

KLA_OP(matmul_forward, cpu, forward);
KLA_OP(matmul_backward_input, cpu, backward_input);
KLA_OP(matmul_backward_weight, cpu, backward_weight);

}  // namespace
}  // namespace kla::cpu
