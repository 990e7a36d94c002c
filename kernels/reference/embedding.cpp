// Reference embedding: a row lookup, and its scatter in the order of the tokens.
#include "kernels/ops.h"
#include "kernels/reference/matrix.h"

namespace kla::reference {
namespace {

template <class T>
void embedding_forward(Context& context, const EmbeddingForward& a) {
  const Matrix<T> x = matrix<T>(a.x), table = matrix<T>(a.table);
  context.parallel(1, [&](int64_t, int) {
    const int32_t* tokens = a.tokens.as<int32_t>();
    for (int64_t m = 0; m < x.rows; ++m) std::copy_n(table[tokens[m]], x.cols, x[m]);
  });
}

template <class T>
void embedding_backward(Context& context, const EmbeddingBackward& a) {
  const Matrix<T> dx = matrix<T>(a.dx), dtable = matrix<T>(a.dtable);
  context.parallel(1, [&](int64_t, int) {
    const int32_t* tokens = a.tokens.as<int32_t>();
    for (int64_t m = 0; m < dx.rows; ++m) add_scaled(dtable[tokens[m]], T(1), dx[m], dx.cols);
  });
}

KLA_OP(embedding_forward, reference, embedding_forward<double>);
KLA_OP(embedding_backward, reference, embedding_backward<double>);

}  // namespace
}  // namespace kla::reference
