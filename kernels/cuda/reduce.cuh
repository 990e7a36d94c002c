// Sums whose order depends on shapes alone: over lanes and over warps by halves, over rows of
// partial sums one after the other. No atomics, so the same input gives the same bits.
#pragma once

#include "kernels/cuda/vector.cuh"

namespace kla::KLA_BACKEND {

// Sum over groups of `lanes` neighbours (a power of two); all lanes of the warp take part and all
// get the sum of their group.
template <class T>
__device__ inline T group_sum(T x, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// Sum over a block of whole warps, known to all threads. `slots` holds one value per warp and may
// be used again after another barrier: two calls in a row take turns with two arrays.
template <class T>
__device__ inline T block_sum(T x, T* slots) {
  x = group_sum(x, kWarp);
  if (threadIdx.x % kWarp == 0) slots[threadIdx.x / kWarp] = x;
  __syncthreads();
  const unsigned lane = threadIdx.x % kWarp;
  return group_sum(lane < blockDim.x / kWarp ? slots[lane] : T{0}, kWarp);
}

// The same for the largest; a NaN counts as smallest.
__device__ inline float block_max(float x, float* slots) {
  for (int step = kWarp / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  if (threadIdx.x % kWarp == 0) slots[threadIdx.x / kWarp] = x;
  __syncthreads();
  float top = slots[0];
  for (unsigned warp = 1; warp < blockDim.x / kWarp; ++warp) top = fmaxf(top, slots[warp]);
  return top;
}

// How many blocks keep a partial sum over rows: enough to fill a GPU, few enough that the partial
// sums cost nothing beside the rows.
inline int64_t partial_sum_blocks(int64_t rows) {
  constexpr int64_t kMostBlocks = 1024;
  return rows < kMostBlocks ? rows : kMostBlocks;
}

// sum[c] += partial[0][c] + partial[1][c] + ...; partial is [rows,C] f32, sum [C] f32
// (partial_sums.cu).
void add_partial_sums(const Context&, const View& partial, const View& sum);

}  // namespace kla::KLA_BACKEND
