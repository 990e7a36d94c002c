// Matrix products on the 64-row tiles of the mixer: oneDNN's sgemm on the calling thread, and the
// triangular products of the chunk rule, cut into row blocks so that the zero half costs nothing.
// Everything is row-major fp32 with a leading dimension.
#pragma once

#include <cstdint>

namespace kla::cpu {

// A row-major matrix; shape is an argument of the product.
struct Tile {
  const float* data;
  int64_t ld;
};
struct MutableTile {
  float* data;
  int64_t ld;
  operator Tile() const { return {data, ld}; }
};

enum class Form {
  plain,         // A B,   A [m,k], B [k,n]
  transposed_b,  // A B^T, A [m,k], B [n,k]
  transposed_a,  // A^T B, A [k,m], B [k,n]
};

// c = op(a, b) + keep c. With keep = 0 the old c is not read, so it may be NaN.
void gemm(Form form, int64_t m, int64_t n, int64_t k, Tile a, Tile b, float keep, MutableTile c);

// L is [n,n], zero above the diagonal (only its blocks on and below the diagonal are read).
// c[n,w] = L b + keep c.
void lower_times(int64_t n, int64_t w, Tile L, Tile b, float keep, MutableTile c);
// c[n,w] = L^T b + keep c.
void lower_transposed_times(int64_t n, int64_t w, Tile L, Tile b, float keep, MutableTile c);
// The blocks on and below the diagonal of c[n,n] = a b^T, a and b [n,w]; those above are not
// written.
void lower_of_product(int64_t n, int64_t w, Tile a, Tile b, MutableTile c);

}  // namespace kla::cpu
