// What the three delta-rule kernels share: one chunk's tiles in shared memory, its gates, the two
// lower triangles Tg = Gam o T0 and P, and the two chains of products that a warp runs for its 16
// columns of V (kernels/README.md, The delta rule).
//
// The chains are transposed: a warp's rows are V columns, so the state S^T, the errors Y^T and the
// writes X^T pass from accumulator to left operand in registers, and all right operands are
// row-major token tiles. Every index i, j below counts blocks of 16 tokens.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/mma.cuh"
#include "kernels/ops.h"

namespace kla::KLA_BACKEND {

inline constexpr int kTokens = static_cast<int>(kChunk);
inline constexpr int kTokenBlocks = kTokens / kBlock;
inline constexpr int kLowerBlocks = kTokenBlocks * (kTokenBlocks + 1) / 2;

// The inputs on the device. Rows of q, k, v are tokens of one head, H K or H V apart.
template <class T>
struct DeltaPointers {
  const T *q, *k, *v, *T_zero;
  const float *beta, *g;
  const uint8_t* reset;  // null: none
  int steps, H, K, V, NC;
  float scale;
};

template <class T>
DeltaPointers<T> delta_pointers(const DeltaInputs& in, int64_t V) {
  for (const View* view : {&in.q, &in.k, &in.v, &in.beta, &in.g, &in.T_zero, &in.reset})
    KLA_CHECK(view->empty() || view->dense(), view->describe());
  KLA_CHECK(in.T_zero.dim(4) == kChunk, in.T_zero.describe());
  return {.q = pointer<T>(in.q),
          .k = pointer<T>(in.k),
          .v = pointer<T>(in.v),
          .T_zero = pointer<T>(in.T_zero),
          .beta = pointer<float>(in.beta),
          .g = pointer<float>(in.g),
          .reset = pointer<uint8_t>(in.reset),
          .steps = static_cast<int>(in.q.dim(1)),
          .H = static_cast<int>(in.q.dim(2)),
          .K = static_cast<int>(in.q.dim(3)),
          .V = static_cast<int>(V),
          .NC = static_cast<int>(in.T_zero.dim(1)),
          .scale = static_cast<float>(in.scale)};
}

// Calls visit with the key width that a kernel is compiled for; tiles are zero beyond K.
// Error{usage} for head dims the kernels do not take.
template <class Visit>
void visit_head_dims(int64_t K, int64_t V, Visit&& visit) {
  const auto refuse = [](const char* key, int64_t value, const char* remedy) {
    throw Error(Exit::usage,
                std::string(key) + " is " + std::to_string(value) +
                    ", which the CUDA kernels of the delta rule do not take",
                remedy);
  };
  if (K < kBlock || K > 256 || K % kBlock != 0)
    refuse("model.key_head_dim", K, "Choose a multiple of 16 from 16 to 256.");
  if (V < kBlock || V % kBlock != 0) refuse("model.value_head_dim", V, "Choose a multiple of 16.");
  if (K <= 48) return visit(std::integral_constant<int, 48>{});
  if (K <= 96) return visit(std::integral_constant<int, 96>{});
  if (K <= 128) return visit(std::integral_constant<int, 128>{});
  visit(std::integral_constant<int, 256>{});
}

// The fewest keys that a kernel compiled for `width` is called with.
constexpr int least_keys(int width) {
  return width == 48 ? 16 : width == 96 ? 64 : width == 128 ? 112 : 144;
}

// An attribute of the current device.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  KLA_CUDA_CHECK(cudaGetDevice(&device));
  KLA_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}
inline int multiprocessors() {
  return device_attribute(cudaDevAttrMultiProcessorCount);
}
inline bool has_shared_memory(size_t bytes) {
  return bytes <= static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

struct ChunkPlace {
  int b, n, h;
  int tokens;  // L <= 64
};

template <class T>
__device__ ChunkPlace chunk_place(const DeltaPointers<T>& in, int b, int n, int h) {
  const int left = in.steps - n * kTokens;
  return {b, n, h, left < kTokens ? left : kTokens};
}

// Number of the chunk in [B,NC,H], of its first token in [B,T,H]. Rows are counted in 32 bits,
// elements in 64.
template <class T>
__device__ int64_t chunk_index(const DeltaPointers<T>& in, const ChunkPlace& p) {
  return (p.b * in.NC + p.n) * in.H + p.h;
}
template <class T>
__device__ int64_t first_row(const DeltaPointers<T>& in, const ChunkPlace& p) {
  return (p.b * in.steps + p.n * kTokens) * in.H + p.h;
}

// x times a decay factor; a zero factor selects zero, so that nothing passes a document boundary.
__device__ inline float decayed(float factor, float x) {
  return factor == 0 ? 0 : factor * x;
}

// ---- Copies ------------------------------------------------------------------------------------

// kWidth columns of kRows rows, `stride` apart; zeros beyond `rows` and `columns`. The caller's
// `thread` is one of `threads`: of each slice of the columns it takes a piece of every row it
// comes to.
template <int kWidth, int kRows = kTokens, class T>
__device__ __forceinline__ void copy_tile(const Tile<T>& to, const T* from, int stride, int rows,
                                          int columns, int thread, int threads) {
  constexpr int kPiece = 16 / static_cast<int>(sizeof(T));
  constexpr int kSlice = kWidth / kPiece <= 32 ? kWidth : 32 * kPiece, kPieces = kSlice / kPiece;
  const int pass = threads / kPieces, row = thread / kPieces;
  if (row >= pass) return;
  const int64_t step = int64_t{pass} * stride;
#pragma unroll
  for (int first = 0; first < kWidth; first += kSlice) {
    const int column = first + thread % kPieces * kPiece, valid = column < columns ? rows : 0;
    T* shared = to.at(row, column);
    const T* global = from + int64_t{row} * stride + column;
    for (int r = row; r < kRows; r += pass, shared += pass * to.stride, global += step)
      cp_async_16(shared, global, r < valid);
  }
}

// A warp's 16 columns of a token tile back to global memory.
template <class T>
__device__ __forceinline__ void write_columns(T* to, int stride, int rows, const Tile<T>& from) {
  constexpr int kPiece = 16 / static_cast<int>(sizeof(T)), kPieces = kBlock / kPiece;
  constexpr int kPass = 32 / kPieces;
  const int row = lane_index() / kPieces, column = lane_index() % kPieces * kPiece;
  T* global = to + int64_t{row} * stride + column;
#pragma unroll
  for (int r = 0; r < kTokens; r += kPass, global += int64_t{kPass} * stride)
    if (row + r < rows)
      *reinterpret_cast<uint4*>(global) = *reinterpret_cast<const uint4*>(from.at(row + r, column));
}

// ---- Triangles ---------------------------------------------------------------------------------

// The lower triangle of a 64x64 matrix: ten 16x16 blocks, row by row.
template <class T>
struct Triangle {
  static constexpr int kStride = padded<T>(kBlock);
  static constexpr int kElements = kLowerBlocks * kBlock * kStride;
  T* data;
  __device__ Tile<T> block(int index) const { return {data + index * kBlock * kStride, kStride}; }
  __device__ Tile<T> block(int i, int j) const { return block(i * (i + 1) / 2 + j); }
};

struct BlockIndex {
  int i, j;
  __device__ explicit BlockIndex(int index)
      : i((index >= 1) + (index >= 3) + (index >= 6)), j(index - i * (i + 1) / 2) {}
};

// The lower blocks of a [64][64] matrix; a warp takes every warps-th block.
template <class AnyTriangle, class T>
__device__ __forceinline__ void copy_triangle(const AnyTriangle& to, const T* square, int warp,
                                              int warps, int lane) {
  constexpr int kPiece = 16 / static_cast<int>(sizeof(T)), kPieces = kBlock / kPiece;
  constexpr int kPass = 32 / kPieces;
  const int row = lane / kPieces, column = lane % kPieces * kPiece;
  for (int index = warp; index < kLowerBlocks; index += warps) {
    const BlockIndex block(index);
    const T* from = square + (block.i * kBlock + row) * kTokens + block.j * kBlock + column;
#pragma unroll
    for (int r = 0; r < kBlock; r += kPass)
      cp_async_16(to.block(index).at(row + r, column), from + r * kTokens, true);
  }
}

// ---- Gates -------------------------------------------------------------------------------------

// Decay factors and steps of a chunk. G, in powers of two, is kept in two floats: differences of
// numbers near -1000 then lose nothing. Every exponent is clamped at 0; what would reach across a
// reset is zero by selection.
struct alignas(16) Gates {
  float G_high[kTokens], G_low[kTokens];  // since the start of the chunk or document
  float D[kTokens], E[kTokens], beta[kTokens];
  float gamma;
  int resets;          // in the chunk
  int first[kTokens];  // the token that starts this token's document, or 0

  // What a token needs to look back: at token j of its document it sees exp(G_i - G_j).
  struct Row {
    float high, low;
    int token, first;
    __device__ bool reaches(int j) const { return j <= token && j >= first; }
  };
  __device__ Row row(int i) const { return {G_high[i], G_low[i], i, first[i]}; }
  // Gam_ij where i reaches j.
  __device__ float between(const Row& i, int j) const {
    return exp2_fast(fminf((i.high - G_high[j]) + (i.low - G_low[j]), 0.0f));
  }
};

// What a lane of the warp that makes the gates reads: tokens 2 lane and 2 lane + 1. Tokens past the
// end have g = 0 and beta = 0.
struct GateInputs {
  float g[2] = {}, beta[2] = {};
  int reset[2] = {};

  GateInputs() = default;
  template <class T>
  __device__ GateInputs(const DeltaPointers<T>& in, const ChunkPlace& p) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = 2 * lane_index() + i;
      if (t >= p.tokens) continue;
      const int token = p.b * in.steps + p.n * kTokens + t, row = token * in.H + p.h;
      g[i] = in.g[row];
      beta[i] = in.beta[row];
      reset[i] = in.reset && in.reset[token] != 0;
    }
  }
};

// Sums of g that begin anew at each reset, over the 64 tokens of a warp, in double.
__device__ inline void segmented_sums(const GateInputs& in, double (&G)[2]) {
  const int lane = lane_index();
  double sum = in.reset[1] ? in.g[1] : static_cast<double>(in.g[0]) + in.g[1];
  int cut = in.reset[0] || in.reset[1];  // nothing before this lane's tokens reaches the sum
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const double earlier = __shfl_up_sync(kAllLanes, sum, distance);
    const int earlier_cut = __shfl_up_sync(kAllLanes, cut, distance);
    if (lane < distance) continue;
    if (!cut) sum += earlier;
    cut |= earlier_cut;
  }
  const double before = __shfl_up_sync(kAllLanes, sum, 1);
  G[0] = lane == 0 || in.reset[0] ? in.g[0] : before + in.g[0];
  G[1] = in.reset[1] ? in.g[1] : G[0] + in.g[1];
}

// The highest bit that is set, or -1.
__device__ inline int last_bit(unsigned bits) {
  return 31 - __clz(static_cast<int>(bits));
}

// One warp makes the gates of a chunk.
__device__ inline void make_gates(Gates& out, const GateInputs& in) {
  const int lane = lane_index();
  const double kLog2E = 1.4426950408889634;
  double G[2];
  segmented_sums(in, G);
  const unsigned even = __ballot_sync(kAllLanes, in.reset[0]);
  const unsigned odd = __ballot_sync(kAllLanes, in.reset[1]);
  const unsigned before = (1u << lane) - 1;
  const int total = __popc(even) + __popc(odd);
  const double G_end = __shfl_sync(kAllLanes, G[1], 31);
  const auto decay = [&](bool same_document, double exponent) {
    return same_document ? exp2_fast(fminf(static_cast<float>(exponent * kLog2E), 0.0f)) : 0.0f;
  };
  int document = __popc(even & before) + __popc(odd & before);
  int first = max(0, max(2 * last_bit(even & before), 2 * last_bit(odd & before) + 1));
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = 2 * lane + i;
    document += in.reset[i];
    if (in.reset[i]) first = t;
    out.G_high[t] = static_cast<float>(G[i] * kLog2E);
    out.G_low[t] = static_cast<float>(G[i] * kLog2E - out.G_high[t]);
    out.D[t] = decay(document == 0, G[i]);
    out.E[t] = decay(document == total, G_end - G[i]);
    out.beta[t] = in.beta[i];
    out.first[t] = first;
  }
  if (lane != 0) return;
  out.gamma = decay(total == 0, G_end);
  out.resets = total;
}

// ---- Products ----------------------------------------------------------------------------------

// c plus rows i of a times rows j of b, summed over their kK columns.
template <int kK, class TileA, class TileB>
__device__ Accumulator product_abt(const TileA& a, int i, const TileB& b, int j,
                                   Accumulator c = {}) {
  [[maybe_unused]] constexpr int kUnroll =
      kK <= 128 ? kK / kBlock : 4;  // more loads drawn ahead would spill
#pragma unroll kUnroll
  for (int k = 0; k < kK; k += kBlock)
    multiply_add(c, load_a(a, i * kBlock, k), load_b_transposed(b, j * kBlock, k));
  return c;
}

// The rows that a lane has of a block of 16 tokens, element by element.
struct TwoRows {
  Gates::Row row[2];
  __device__ const Gates::Row& of(int e) const { return row[e / 2 % 2]; }
};
__device__ __forceinline__ TwoRows two_rows(const Gates& gates, int first) {
  return {{gates.row(first + row_of(0)), gates.row(first + row_of(2))}};
}

// A block of the two triangles.
struct GatedBlock {
  Accumulator inverse, P;
};
// Gam o T0 and P = s Gam o Q K^T of one block; `inverse` holds T0.
template <class AnyTriangle>
__device__ __forceinline__ GatedBlock gated_block(const BlockIndex& block,
                                                  const AnyTriangle& inverse, const Accumulator& QK,
                                                  const Gates& gates, float scale) {
  GatedBlock gated;
  const auto T0 = load_a(inverse.block(block.i, block.j), 0, 0);
  const TwoRows rows = two_rows(gates, block.i * kBlock);
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const Gates::Row& i = rows.of(e);
    const int j = block.j * kBlock + column_of(e);
    const float Gam = gates.between(i, j);
    gated.P[e] = i.reaches(j) ? scale * Gam * QK[e] : 0;
    gated.inverse[e] = i.reaches(j) ? Gam * value(T0, e) : 0;
  }
  return gated;
}
// The same to its places, Gam o T0 in that of T0.
template <class AnyTriangle>
__device__ __forceinline__ void gate_block(const AnyTriangle& inverse, const AnyTriangle& P,
                                           const BlockIndex& block, const Accumulator& QK,
                                           const Gates& gates, float scale) {
  const GatedBlock gated = gated_block(block, inverse, QK, gates, scale);
  __syncwarp();
  store(P.block(block.i, block.j), 0, 0, gated.P);
  store(inverse.block(block.i, block.j), 0, 0, gated.inverse);
}

// Both triangles. The block's warps share the ten blocks.
template <int kK, class AnyTriangle, class AnyTile>
__device__ void gate_triangles(const AnyTriangle& inverse, const AnyTriangle& P, const AnyTile& q,
                               const AnyTile& k, const Gates& gates, float scale) {
  for (int index = warp_index(); index < kLowerBlocks; index += warp_count()) {
    const BlockIndex block(index);
    gate_block(inverse, P, block, product_abt<kK>(q, block.i, k, block.j), gates, scale);
  }
}

__device__ inline void set_zero(Accumulator& c, int e) {
  c[e] = 0;
}
__device__ inline void set_zero(OperandA<float>& a, int e) {
  a.x[e] = 0;
}
__device__ inline void set_zero(OperandA<bfloat16>& a, int e) {
  a.x[e / 2] &= e % 2 ? 0x0000FFFFu : 0xFFFF0000u;
}

// Zeros where a document boundary lies between a token and the state: columns of the blocks are the
// tokens from block `first` on, `factor` is D or E. Without it, 0 times inf would pass as NaN.
template <class Block, int kCount>
__device__ __forceinline__ void forget(Block (&blocks)[kCount], const Gates& gates,
                                       const float* factor, int first = 0) {
  if (gates.resets == 0) return;
#pragma unroll
  for (int i = 0; i < kCount; ++i)
#pragma unroll
    for (int e = 0; e < 8; ++e)
      if (factor[(first + i) * kBlock + column_of(e)] == 0) set_zero(blocks[i], e);
}

// beta o Y of the 16 columns of V from `column`, transposed, with Y = V - D R; R forgot.
template <class AnyTile>
__device__ __forceinline__ auto weighted_errors(const Accumulator& R, const AnyTile& v, int column,
                                                int j, const Gates& gates) {
  const auto values = load_a_transposed(v, column, j * kBlock);
  Accumulator y;
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const int t = j * kBlock + column_of(e);
    y[e] = gates.beta[t] * (value(values, e) - gates.D[t] * R[e]);
  }
  return operand<typename AnyTile::Element>(y);
}

// Block i of X = Tg (beta o Y), transposed: sum over j <= i of Yb_j^T Tg_ij^T.
template <class T>
__device__ __forceinline__ Accumulator writes(const OperandA<T> (&Yb)[kTokenBlocks], int i,
                                              const Triangle<T>& Tg) {
  Accumulator x;
#pragma unroll
  for (int j = 0; j <= i; ++j) multiply_add(x, Yb[j], load_b_transposed(Tg.block(i, j), 0, 0));
  return x;
}

// Block j of dX = P^T dO + E (K dS), transposed; KdS holds (K dS)_j and forgot.
template <class T>
__device__ __forceinline__ OperandA<T> write_gradients(const Accumulator& KdS, const Tile<T>& dout,
                                                       int column, int j, const Triangle<T>& P,
                                                       const Gates& gates) {
  Accumulator dx;
#pragma unroll
  for (int e = 0; e < 8; ++e) dx[e] = gates.E[j * kBlock + column_of(e)] * KdS[e];
#pragma unroll
  for (int i = j; i < kTokenBlocks; ++i)
    multiply_add(dx, load_a_transposed(dout, column, i * kBlock), load_b(P.block(i, j), 0, 0));
  return operand<T>(dx);
}

// Block j of N = Tg^T dX, transposed: sum over i >= j of dX_i^T Tg_ij.
template <class T>
__device__ __forceinline__ Accumulator error_gradients(const OperandA<T> (&dX)[kTokenBlocks], int j,
                                                       const Triangle<T>& Tg) {
  Accumulator n;
#pragma unroll
  for (int i = j; i < kTokenBlocks; ++i) multiply_add(n, dX[i], load_b(Tg.block(i, j), 0, 0));
  return n;
}

}  // namespace kla::KLA_BACKEND
