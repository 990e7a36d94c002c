// Embedding lookup and its scatter-add. Backward is cut by columns, so that every task meets the
// tokens in their order and no two tasks share an element.
#include <cstring>
#include <string>

#include "core/error.h"
#include "kernels/cpu/blocks.h"
#include "kernels/ops.h"

namespace kla::cpu {
namespace {

// A wrong token would silently read or write foreign memory.
int64_t checked_token(const View& tokens, int64_t m, int64_t N) {
  const int64_t token = tokens.as<int32_t>()[m];
  KLA_CHECK(token >= 0 && token < N,
            "token " + std::to_string(token) + " of a vocabulary of " + std::to_string(N));
  return token;
}

void forward(Context& context, const EmbeddingForward& a) {
  const Blocks rows{a.x.rows(), kRowsPerTask};
  const size_t bytes = static_cast<size_t>(a.x.cols()) * sizeof(float);
  context.parallel(rows.count(), [&](int64_t task, int) {
    for (int64_t i = 0; i < rows.length(task); ++i) {
      const int64_t m = rows.first(task) + i;
      std::memcpy(row(a.x, m), row(a.table, checked_token(a.tokens, m, a.table.rows())), bytes);
    }
  });
}

void backward(Context& context, const EmbeddingBackward& a) {
  const Blocks columns{a.dx.cols(), 64};
  context.parallel(columns.count(), [&](int64_t task, int) {
    for (int64_t m = 0; m < a.dx.rows(); ++m) {
      const int64_t token = checked_token(a.tokens, m, a.dtable.rows());
      const float* dx = row(a.dx, m) + columns.first(task);
      float* sum = row(a.dtable, token) + columns.first(task);
      for (int64_t i = 0; i < columns.length(task); ++i) sum[i] += dx[i];
    }
  });
}

KLA_OP(embedding_forward, cpu, forward);
KLA_OP(embedding_backward, cpu, backward);

}  // namespace
}  // namespace kla::cpu
