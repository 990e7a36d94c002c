#include "kernels/cpu/tile_gemm.h"

#include <dnnl.h>
#include <omp.h>

#include <algorithm>

namespace kla::cpu {

namespace {

constexpr int64_t kBlock =
    32;  // rows of a triangular block: smaller ones cost more calls than work

// Debian's oneDNN runs on OpenMP. The pool's threads are the parallelism here, so each of them
// tells OpenMP once that it stands alone.
void limit_openmp_to_this_thread() {
  thread_local bool limited = false;
  if (!limited) omp_set_num_threads(1);
  limited = true;
}

}  // namespace

void gemm(Form form, int64_t m, int64_t n, int64_t k, Tile a, Tile b, float keep, MutableTile c) {
  if (m == 0 || n == 0) return;
  if (k == 0) {  // oneDNN would leave c as it is
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) {
        float& x = c.data[i * c.ld + j];
        x = keep == 0 ? 0 : keep * x;
      }
    return;
  }
  limit_openmp_to_this_thread();
  dnnl_sgemm(form == Form::transposed_a ? 'T' : 'N', form == Form::transposed_b ? 'T' : 'N', m, n,
             k, 1.0f, a.data, a.ld, b.data, b.ld, keep, c.data, c.ld);
}

void lower_times(int64_t n, int64_t w, Tile L, Tile b, float keep, MutableTile c) {
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t rows = std::min(kBlock, n - i);
    gemm(Form::plain, rows, w, i + rows, {L.data + i * L.ld, L.ld}, b, keep,
         {c.data + i * c.ld, c.ld});
  }
}

void lower_transposed_times(int64_t n, int64_t w, Tile L, Tile b, float keep, MutableTile c) {
  for (int64_t j = 0; j < n; j += kBlock)
    gemm(Form::transposed_a, std::min(kBlock, n - j), w, n - j, {L.data + j * L.ld + j, L.ld},
         {b.data + j * b.ld, b.ld}, keep, {c.data + j * c.ld, c.ld});
}

void lower_of_product(int64_t n, int64_t w, Tile a, Tile b, MutableTile c) {
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t rows = std::min(kBlock, n - i);
    gemm(Form::transposed_b, rows, i + rows, w, {a.data + i * a.ld, a.ld}, b, 0,
         {c.data + i * c.ld, c.ld});
  }
}

}  // namespace kla::cpu
