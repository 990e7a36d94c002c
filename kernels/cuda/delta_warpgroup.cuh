// What the delta-rule kernels on warpgroups share: tiles in 8x8 cores, their copies, and the
// products of 64 rows (wgmma.cuh). The same bytes of a tile serve as [rows][columns] and as its
// transpose.
#pragma once

#include "kernels/cuda/delta_tile.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace kla::KLA_BACKEND {

// Whether the program has code for warpgroups and the current device runs it.
inline bool has_warpgroups() {
#if defined(KLA_SM90A) || defined(KLA_SIMT)
  return device_attribute(cudaDevAttrComputeCapabilityMajor) == 9;
#else
  return false;
#endif
}

inline constexpr int kCoreBytes = 2 * CoreTile<kTokens>::kCore;

// Bytes from one row of cores to the next.
template <int kColumns>
constexpr int row_bytes(CoreTile<kColumns>) {
  return 2 * CoreTile<kColumns>::kRowOfCores;
}

// A tile as operand of a product, from its 16 rows or columns number i on: the summed index runs
// along the columns of the tile, or (transposed) along its rows.
template <int kColumns>
__device__ __forceinline__ SharedOperand along_columns(const CoreTile<kColumns>& tile, int i) {
  return advanced(shared_operand(tile.data, kCoreBytes, row_bytes(tile)), 2 * i * kCoreBytes);
}
template <int kColumns>
__device__ __forceinline__ SharedOperand along_rows(const CoreTile<kColumns>& tile, int i) {
  return advanced(shared_operand(tile.data, row_bytes(tile), kCoreBytes), 2 * i * row_bytes(tile));
}

// A lower triangle as one [64][64] tile; the blocks above the diagonal are zero.
struct CoreTriangle {
  bfloat16* data;
  __device__ CoreTile<kTokens> all() const { return {data}; }
  __device__ CoreTile<kTokens> block(int i, int j) const {
    return {all().at(i * kBlock, j * kBlock)};
  }
};

// kColumns columns of 64 rows, `stride` apart, by kThreads threads: neighbours take neighbouring
// pieces of a row. Zeros where not valid(row, column).
template <int kColumns, int kThreads, class AnyTile, class Valid>
__device__ __forceinline__ void copy_rows(const AnyTile& to, const bfloat16* from, int stride,
                                          int thread, Valid&& valid) {
  constexpr int kPieces = kColumns / 8, kMostRows = kThreads / kPieces;
  constexpr int kPass = kMostRows >= 32 ? 32 : kMostRows >= 16 ? 16 : 8;  // rows at once
  const int row = thread / kPieces, column = thread % kPieces * 8;
  const bool wanted = kPass * kPieces == kThreads || row < kPass;
  bfloat16* shared = to.at(row, column);
  const bfloat16* global = from + int64_t{row} * stride + column;
#pragma unroll
  for (int r = 0; r < kTokens; r += kPass)
    cp_async_16_if(wanted, shared + (to.at(r, 0) - to.at(0, 0)), global + int64_t{r} * stride,
                   valid(row + r, column));
}

// Zeros a whole triangle.
__device__ __forceinline__ void clear(const CoreTriangle& triangle) {
  uint4* pieces = reinterpret_cast<uint4*>(triangle.data);
  for (int i = static_cast<int>(threadIdx.x); i < CoreTile<kTokens>::elements(kTokens) / 8;
       i += static_cast<int>(blockDim.x))
    pieces[i] = uint4{};
}

template <int kBlocks>
__device__ __forceinline__ void round_blocks(const Accumulator (&c)[kBlocks],
                                             OperandA<bfloat16> (&a)[kBlocks]) {
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) a[i] = operand<bfloat16>(c[i]);
}

__device__ __forceinline__ void scale_columns(Accumulator (&c)[kTokenBlocks], const float* factor,
                                              float scale) {
#pragma unroll
  for (int i = 0; i < kTokenBlocks; ++i)
#pragma unroll
    for (int e = 0; e < 8; ++e) c[i][e] *= scale * factor[i * kBlock + column_of(e)];
}

// Block i of c sums a_j lower_ij^T over j <= i. The blocks above are read and must be zero:
// products of fewer blocks would begin inside the accumulators, which ptxas then copies to and fro.
template <bool kAdd>
__device__ __forceinline__ void multiply_lower(Accumulator (&c)[kTokenBlocks],
                                               const OperandA<bfloat16> (&a)[kTokenBlocks],
                                               const CoreTriangle& lower) {
  warpgroup_multiply<0, kTokenBlocks, false, kAdd>(c, a[0].x, along_columns(lower.all(), 0));
#pragma unroll
  for (int j = 1; j < kTokenBlocks; ++j)
    warpgroup_multiply<0, kTokenBlocks, false, true>(c, a[j].x, along_columns(lower.all(), j));
}
// Block j of c sums a_i lower_ij over i >= j.
template <bool kAdd>
__device__ __forceinline__ void multiply_upper(Accumulator (&c)[kTokenBlocks],
                                               const OperandA<bfloat16> (&a)[kTokenBlocks],
                                               const CoreTriangle& lower) {
  warpgroup_multiply<0, 4, true, kAdd>(c, a[3].x, along_rows(lower.block(3, 0), 0));
  warpgroup_multiply<0, 3, true, true>(c, a[2].x, along_rows(lower.block(2, 0), 0));
  warpgroup_multiply<0, 2, true, true>(c, a[1].x, along_rows(lower.block(1, 0), 0));
  warpgroup_multiply<0, 1, true, true>(c, a[0].x, along_rows(lower.block(0, 0), 0));
}

}  // namespace kla::KLA_BACKEND
