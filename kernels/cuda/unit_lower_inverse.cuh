// T = (I + A)^-1 of a strictly lower triangular A, 64 x 64 f32 in shared memory, by one block
// (KERNEL_MATH 5): forward substitution in the four 16 x 16 blocks of the diagonal, a half-warp
// each with a column per lane, then two merges
//     T21 = -(T22 A21) T11
// as products of 16 x 16 blocks in f32. Never a power series: the powers of A grow before they
// cancel. On and above its diagonal A is not read; of T the blocks above the diagonal are not
// written.
#pragma once

#include "kernels/cuda/mma.cuh"
#include "kernels/ops.h"

namespace kla::KLA_BACKEND {

constexpr int kLeaf = kBlock;
constexpr int kInverseStride = kChunk + 4;  // floats between rows of A and T

// Column threadIdx.x % 16 of the inverse of diagonal block threadIdx.x / 16.
__device__ inline void invert_leaf(const float* A, float* T) {
  const int first = static_cast<int>(threadIdx.x) / kLeaf * kLeaf;
  const int column = static_cast<int>(threadIdx.x) % kLeaf;
  const float* row = A + first * kInverseStride + first;
  float* to = T + first * kInverseStride + first + column;
  float t[kLeaf];
#pragma unroll
  for (int i = 0; i < kLeaf; ++i) {
    t[i] = i == column ? 1.0f : 0.0f;
#pragma unroll
    for (int l = 0; l < i; ++l) t[i] -= row[i * kInverseStride + l] * t[l];
  }
#pragma unroll
  for (int i = 0; i < kLeaf; ++i) to[i * kInverseStride] = t[i];
}

// Block (i, j) of T21 where T11 and T22 are `blocks` blocks wide and T11 starts at block `upper`.
__device__ inline void merge_block(const Tile<float>& A, const Tile<float>& T, int upper,
                                   int blocks, int i, int j) {
  const int lower = upper + blocks, row = kBlock * (lower + i);
  Accumulator sum;
#pragma unroll 1
  for (int l = j; l < blocks; ++l) {
    Accumulator product;
#pragma unroll 1
    for (int k = 0; k <= i; ++k)
      multiply_add(product, load_a(T, row, kBlock * (lower + k)),
                   load_b(A, kBlock * (lower + k), kBlock * (upper + l)));
    multiply_add(sum, operand<float>(product),
                 load_b(T, kBlock * (upper + l), kBlock * (upper + j)));
  }
  for (int e = 0; e < 8; ++e) sum[e] = -sum[e];
  store(T, row, kBlock * (upper + j), sum);
}

// All warps of the block, at least 4, once the diagonal blocks are visible.
__device__ inline void merge_leaves(float* A_data, float* T_data) {
  const Tile<float> A{A_data, kInverseStride}, T{T_data, kInverseStride};
  const int warp = uniform_warp_index();
  if (warp < 2) merge_block(A, T, 2 * warp, 1, 0, 0);
  __syncthreads();
  if (warp < 4) merge_block(A, T, 0, 2, warp / 2, warp % 2);
  __syncthreads();
}

}  // namespace kla::KLA_BACKEND
