// How work is cut into tasks: always by shape, never by the number of threads, so that one thread
// and many give the same bits. Also the address of a row of a View.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/context.h"
#include "core/view.h"

namespace kla::cpu {

// [0, total) in blocks of `size`; the last may be shorter.
struct Blocks {
  int64_t total, size;

  int64_t count() const { return (total + size - 1) / size; }
  int64_t first(int64_t i) const { return i * size; }
  int64_t length(int64_t i) const { return std::min(size, total - i * size); }
};

// Blocks of about `size`, nearly equal, each but the last a multiple of a vector (16 floats).
inline Blocks even_blocks(int64_t total, int64_t size) {
  const int64_t count = std::max<int64_t>(1, (total + size / 2) / size);
  return {total, std::max<int64_t>(16, ((total + count - 1) / count + 15) / 16 * 16)};
}

// For sums over rows, where every block keeps a partial sum: few blocks, however many rows.
inline Blocks partial_sum_blocks(int64_t rows) {
  constexpr int64_t kMostBlocks = 64, kFewestRows = 16;
  return {rows, std::max(kFewestRows, (rows + kMostBlocks - 1) / kMostBlocks)};
}

inline constexpr int64_t kRowsPerTask = 32;  // of elementwise ops: some 100 kB a task

// sum[c] += partial[0][c] + partial[1][c] + ..., in this order.
void add_partial_sums(Context& context, const View& partial, const View& sum);

inline float* row(const View& view, int64_t r) {
  return view.as<float>() + r * view.stride;
}

}  // namespace kla::cpu
