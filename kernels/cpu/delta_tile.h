// What the chunk kernels share: where a chunk lies in the arrays, its decay factors (KERNEL_MATH 2
// and 3), and the elementwise work on tiles between two matrix products, vectorised.
#pragma once

#include <cstdint>

#include "kernels/cpu/tile_gemm.h"
#include "kernels/ops.h"

namespace kla::cpu {

inline constexpr int64_t C = kChunk;
inline constexpr int64_t kChunkTile = C * C;  // floats of a [C,C] tile, leading dimension C

// Hands out pieces of one worker's slice of the scratch memory.
class Slice {
 public:
  Slice(float* memory, int64_t floats) : next_(memory), left_(floats) {}
  float* take(int64_t floats);
  MutableTile tile(int64_t rows, int64_t columns) { return {take(rows * columns), columns}; }
  static int64_t padded(int64_t floats) { return (floats + 15) / 16 * 16; }

 private:
  float* next_;
  int64_t left_;
};

// One slice of `floats` for every worker of the pool.
class WorkerScratch {
 public:
  WorkerScratch(Context& context, int64_t floats);
  Slice operator[](int worker) const { return {memory_ + worker * floats_, floats_}; }

 private:
  int64_t floats_;
  float* memory_;
};

// Shapes and addresses. Chunk c of head h in sequence b has rows(c) tokens from c*C on.
struct ChunkGrid {
  int64_t B, T, H, K, V, NC;
  // `values` is any [B,T,H,V].
  ChunkGrid(const DeltaInputs& in, const View& values);

  int64_t rows(int64_t c) const { return c + 1 < NC ? C : T - c * C; }
  // [B,T,H,n]: the chunk's tokens of one head, a row per token.
  MutableTile tokens(const View& view, int64_t b, int64_t c, int64_t h) const;
  // [B,T,H]: element i of the chunk is data[i * ld].
  MutableTile scalars(const View& view, int64_t b, int64_t c, int64_t h) const;
  // [B,NC,H,r,n]: one matrix per chunk and head.
  MutableTile matrix(const View& view, int64_t b, int64_t c, int64_t h) const;
  // [B,H,r,n]: one matrix per head.
  MutableTile state(const View& view, int64_t b, int64_t h) const;
};

void copy_rows(int64_t rows, int64_t width, Tile from, MutableTile to);
void zero_rows(int64_t rows, int64_t width, MutableTile to);

// Decay factors of one chunk with n tokens. Across a document boundary all of them are zero, so D
// is non-zero in the first `head` rows only, E from row `tail` on, and gamma if head = n; products
// with the state run over those rows only and read nothing else.
struct ChunkDecay {
  int64_t n, head, tail;
  float gamma;
  alignas(64) float D[C], E[C], beta[C];
  alignas(64) float Gam[kChunkTile];  // e^(G_i - G_j) for j <= i in the same document, else 0
};
void load_decay(const ChunkGrid& grid, const DeltaInputs& in, int64_t b, int64_t c, int64_t h,
                ChunkDecay& decay);

// The following work on [n,n] tiles with leading dimension C; what they write is zero above the
// diagonal.
void gate_scores(const ChunkDecay& decay, float scale, float* P);  // P <- scale Gam o P
// Tg = Gam o T_zero.
void gate_inverse(const ChunkDecay& decay, Tile T_zero, float* Tg);
// M = Tg with column j times beta_j.
void scale_columns(const ChunkDecay& decay, const float* Tg, float* M);

// The chunk-by-chunk half of the backward pass, from dP = dO X^T and NX = N X^T (in place):
//   B = scale Gam o tril(dP)                          adjoint of Q K^T
//   W = diag(beta) dA + (diag(beta) dA)^T             dK gets W K; dA = -Gam o stril(NX)
//   dbeta_i += sum_j dA_ij KK_ij
//   dg_t += sum_{i>=t} sum_{j<t} (dP_ij P_ij + dA_ij beta_i KK_ij)
// P is the gated score tile, KK = K K^T.
struct ChunkAdjoint {
  const float *P, *KK;
  float* dP;     // in: dP, out: B
  float* NX;     // in: NX, out: W
  float* dbeta;  // [C], added to
  float* dg;     // [C], added to
};
void chunk_adjoint(const ChunkDecay& decay, float scale, const ChunkAdjoint& a);

// Row by row, for `rows` rows of `width` columns:
void scale_rows(int64_t rows, int64_t width, const float* factor, Tile x, MutableTile y);
// y = v - factor r
void subtract_scaled_rows(int64_t rows, int64_t width, Tile v, const float* factor, Tile r,
                          MutableTile y);
// sums_i = x_i . y_i
void row_dots(int64_t rows, int64_t width, Tile x, Tile y, float* sums);
// y = factor x, sums_i = y_i . z_i
void scale_rows_and_dot(int64_t rows, int64_t width, const float* factor, Tile x, MutableTile y,
                        Tile z, float* sums);

// (I + A)^-1 of a strictly lower triangular A [n,n] by forward substitution; rows and columns from
// n to C become those of the identity.
void unit_lower_inverse(int64_t n, const float* A, MutableTile T_zero);

}  // namespace kla::cpu
