// T = (I + A)^-1 of a strictly lower triangular A, 64 x 64 f32 in shared memory, by one block
// (KERNEL_MATH 5): forward substitution in the four 16 x 16 blocks of the diagonal, a half-warp
// each with a column per lane, then two merges
//     T21 = -T22 (A21 T11)
// in f32 FMA. Never a power series: the powers of A grow before they cancel.
#pragma once

#include "kernels/cuda/quad.cuh"
#include "kernels/ops.h"

namespace kla::KLA_BACKEND {

constexpr int kLeaf = 16;
constexpr int kInverseStride = kChunk + 4;  // floats between rows of A and T

// Column `lane % 16` of the inverse of diagonal block `leaf`.
__device__ inline void invert_leaf(const float* A, float* T, int leaf, int column) {
  const int first = leaf * kLeaf;
  float t[kLeaf];
#pragma unroll
  for (int i = 0; i < kLeaf; ++i) {
    const float* row = A + (first + i) * kInverseStride + first;
    float sum = i == column ? 1.0f : 0.0f;
#pragma unroll
    for (int l = 0; l < i; ++l) sum -= row[l] * t[l];
    t[i] = sum;
  }
#pragma unroll
  for (int i = 0; i < kLeaf; ++i) T[(first + i) * kInverseStride + first + column] = t[i];
}

// One quad of columns of one row: out = sign * sum_l x[l] y[l][0..3], l in [from, to).
__device__ inline void row_product(float* out, float sign, const float* x, const float* y, int from,
                                   int to) {
  Quad sum = {};
#pragma unroll 4
  for (int l = from; l < to; ++l) {
    const Quad row = unpack(load_quad<true>(y + l * kInverseStride));
    for (int e = 0; e < 4; ++e) sum[e] += x[l] * row[e];
  }
  for (int e = 0; e < 4; ++e) sum[e] *= sign;
  store_quad<true>(out, sum);
}

// Merges neighbouring inverses of kSize into ones of 2 kSize. The upper right block of each pair,
// zero in T, holds A21 T11 meanwhile, so it is never read as part of T: sums run only where the
// triangular factor is not zero, in steps of a leaf.
template <int kSize>
__device__ void merge_inverses(const float* A, float* T) {
  constexpr int kQuads = kSize * kSize / 4, kPairs = static_cast<int>(kChunk) / (2 * kSize);
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  const auto place = [](int work, int& upper, int& i, int& j) {
    upper = work / kQuads * 2 * kSize;
    i = work % kQuads / (kSize / 4);
    j = work % (kSize / 4) * 4;
  };
  for (int work = thread; work < kPairs * kQuads; work += threads) {
    int upper, i, j;
    place(work, upper, i, j);
    const int lower = upper + kSize;
    row_product(T + (upper + i) * kInverseStride + lower + j, 1,
                A + (lower + i) * kInverseStride + upper, T + upper * kInverseStride + upper + j,
                j / kLeaf * kLeaf, kSize);
  }
  __syncthreads();
  for (int work = thread; work < kPairs * kQuads; work += threads) {
    int upper, i, j;
    place(work, upper, i, j);
    const int lower = upper + kSize;
    row_product(T + (lower + i) * kInverseStride + upper + j, -1,
                T + (lower + i) * kInverseStride + lower, T + upper * kInverseStride + lower + j, 0,
                (i / kLeaf + 1) * kLeaf);
  }
  __syncthreads();
}

// All threads of the block, at least 64; A is complete and visible. Above the diagonal T is not
// defined.
__device__ inline void unit_lower_inverse(const float* A, float* T) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < kChunk) invert_leaf(A, T, thread / kLeaf, thread % kLeaf);
  __syncthreads();
  merge_inverses<16>(A, T);
  merge_inverses<32>(A, T);
}

}  // namespace kla::KLA_BACKEND
