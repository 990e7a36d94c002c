// Warp-wide products of 16x16 blocks, one source for both compute types. A lane holds eight
// elements of a block, the same ones whether it accumulates or is an operand:
//
//   element e of lane 4g+t:  row g + 8 (e/2 % 2),  column 2t + e%2 + 8 (e/4)
//
// so an accumulator becomes the left operand of the next product without leaving its registers.
// bf16 products are two m16n8k16. float products are three tf32 products each (x = hi + lo, lo lo
// dropped), which keeps f32 accuracy; their m16n8k8 count k in the order 0 2 4 6 1 3 5 7, on both
// sides alike, because that is how an accumulator holds it.
//
// Operands come from tiles of shared memory whose rows lie 16 bytes further apart than they are
// wide: an odd multiple of 16, so the eight rows of an ldmatrix meet different banks.
#pragma once

#include <cstring>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/vector.cuh"

namespace kla::KLA_BACKEND {

inline constexpr int kBlock = 16;

__device__ inline int lane_index() {
  return static_cast<int>(threadIdx.x % 32);
}
__device__ inline int warp_index() {
  return static_cast<int>(threadIdx.x / 32);
}
// The same as the compiler cannot know it otherwise: one number for all lanes, so that branches on
// it are the warp's, not a lane's. Every lane must call.
__device__ inline int uniform_warp_index() {
  return __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x / 32), 0);
}
__device__ inline int warp_count() {
  return static_cast<int>(blockDim.x / 32);
}

// Where element e of a lane lies in its block.
__device__ inline int row_of(int e, int lane = lane_index()) {
  return lane / 4 + e / 2 % 2 * 8;
}
__device__ inline int column_of(int e, int lane = lane_index()) {
  return lane % 4 * 2 + e % 2 + e / 4 * 8;
}

template <class T>
__host__ __device__ constexpr int padded(int columns) {
  return columns + 16 / static_cast<int>(sizeof(T));
}

// Rows of shared memory.
template <class T>
struct Tile {
  using Element = T;
  T* data;
  int stride;
  __device__ T* at(int row, int column) const { return data + row * stride + column; }
};

// Rows of kColumns bf16 values in 8x8 cores of 128 bytes: what a product of a warpgroup reads
// (wgmma.cuh). Cores lie 16 bytes further apart than they are large, so that neighbouring pieces of
// a row meet different banks, as those of a core do.
template <int kColumns>
struct CoreTile {
  using Element = bfloat16;
  static constexpr int kCore = 64 + 8, kRowOfCores = kColumns / 8 * kCore;  // elements
  bfloat16* data;
  __device__ bfloat16* at(int row, int column) const {
    return data + row / 8 * kRowOfCores + column / 8 * kCore + row % 8 * 8 + column % 8;
  }
  static constexpr int elements(int rows) { return rows / 8 * kRowOfCores; }
};

struct Accumulator {  // 16x16, f32
  float x[2][4] = {};
  __device__ float& operator[](int e) { return x[e / 4][e % 4]; }
  __device__ float operator[](int e) const { return x[e / 4][e % 4]; }
};

template <class T>
struct OperandA;  // 16 rows x 16 of the summed index
template <class T>
struct OperandB;  // 16 of the summed index x 16 columns; element e is that of its transpose

template <>
struct OperandA<bfloat16> {
  uint32_t x[4];
};
template <>
struct OperandB<bfloat16> {
  uint32_t x[4];
};
template <>
struct OperandA<float> {
  float x[8];
};
template <>
struct OperandB<float> {
  float x[8];
};

// ---- bf16 --------------------------------------------------------------------------------------

__device__ inline uint32_t pack(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}
__device__ inline float unpack(uint32_t pair, int high) {
  return __uint_as_float(high ? pair & 0xFFFF0000u : pair << 16);
}

// An element of an operand, as its type has rounded it.
__device__ inline float value(const OperandA<bfloat16>& a, int e) {
  return unpack(a.x[e / 2], e % 2);
}

__device__ inline OperandA<bfloat16> operand(const Accumulator& c, bfloat16) {
  return {{pack(c[0], c[1]), pack(c[2], c[3]), pack(c[4], c[5]), pack(c[6], c[7])}};
}

// The left operand whose corner is (row, k) of a tile, or (k, row) of a tile that holds the
// transpose; the right operand (k, column), or (column, k) of the transpose.
template <class AnyTile>
__device__ inline OperandA<bfloat16> load_a(const AnyTile& tile, int row, int k) {
  const int lane = lane_index();
  OperandA<bfloat16> a;
  ldmatrix_x4(a.x, tile.at(row + lane % 16, k + lane / 16 * 8));
  return a;
}
template <class AnyTile>
__device__ inline OperandA<bfloat16> load_a_transposed(const AnyTile& tile, int row, int k) {
  const int lane = lane_index();
  OperandA<bfloat16> a;
  ldmatrix_x4_trans(a.x, tile.at(k + lane / 16 * 8 + lane % 8, row + lane / 8 % 2 * 8));
  return a;
}
template <class AnyTile>
__device__ inline OperandB<bfloat16> load_b(const AnyTile& tile, int k, int column) {
  const int lane = lane_index();
  OperandB<bfloat16> b;
  ldmatrix_x4_trans(b.x, tile.at(k + lane % 16, column + lane / 16 * 8));
  return b;
}
template <class AnyTile>
__device__ inline OperandB<bfloat16> load_b_transposed(const AnyTile& tile, int column, int k) {
  const int lane = lane_index();
  OperandB<bfloat16> b;
  ldmatrix_x4(b.x, tile.at(column + lane / 16 * 8 + lane % 8, k + lane / 8 % 2 * 8));
  return b;
}

// c += a b.
__device__ inline void multiply_add(Accumulator& c, const OperandA<bfloat16>& a,
                                    const OperandB<bfloat16>& b) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const uint32_t half[2] = {b.x[2 * n], b.x[2 * n + 1]};
    mma_m16n8k16(c.x[n], a.x, half);
  }
}

// ---- float -------------------------------------------------------------------------------------

__device__ inline float value(const OperandA<float>& a, int e) {
  return a.x[e];
}

__device__ inline OperandA<float> operand(const Accumulator& c, float) {
  OperandA<float> a;
#pragma unroll
  for (int e = 0; e < 8; ++e) a.x[e] = c[e];
  return a;
}

__device__ inline OperandA<float> load_a(const Tile<float>& tile, int row, int k) {
  const int lane = thread_index() % 32;
  OperandA<float> a;
#pragma unroll
  for (int e = 0; e < 8; ++e) a.x[e] = *tile.at(row + row_of(e, lane), k + column_of(e, lane));
  return a;
}
__device__ inline OperandA<float> load_a_transposed(const Tile<float>& tile, int row, int k) {
  const int lane = thread_index() % 32;
  OperandA<float> a;
#pragma unroll
  for (int e = 0; e < 8; ++e) a.x[e] = *tile.at(k + column_of(e, lane), row + row_of(e, lane));
  return a;
}

// Element 4n + 2h + p of a right operand: k = 8h + 2t + p, column 8n + g.
__device__ inline OperandB<float> load_b(const Tile<float>& tile, int k, int column) {
  const int lane = thread_index() % 32, g = lane / 4, t = lane % 4;
  OperandB<float> b;
#pragma unroll
  for (int e = 0; e < 8; ++e)
    b.x[e] = *tile.at(k + e / 2 % 2 * 8 + 2 * t + e % 2, column + e / 4 * 8 + g);
  return b;
}
__device__ inline OperandB<float> load_b_transposed(const Tile<float>& tile, int column, int k) {
  const int lane = thread_index() % 32, g = lane / 4, t = lane % 4;
  OperandB<float> b;
#pragma unroll
  for (int e = 0; e < 8; ++e)
    b.x[e] = *tile.at(column + e / 4 * 8 + g, k + e / 2 % 2 * 8 + 2 * t + e % 2);
  return b;
}

// x = high + low to 22 bits.
__device__ inline void split(float x, uint32_t& high, uint32_t& low) {
  high = to_tf32(x);
  low = to_tf32(x - __uint_as_float(high));
}

__device__ inline void multiply_add(Accumulator& c, const OperandA<float>& a,
                                    const OperandB<float>& b) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    uint32_t a_high[4], a_low[4];
    constexpr int kOrder[4] = {0, 2, 1, 3};
#pragma unroll
    for (int i = 0; i < 4; ++i) split(a.x[4 * h + kOrder[i]], a_high[i], a_low[i]);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      uint32_t b_high[2], b_low[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) split(b.x[4 * n + 2 * h + i], b_high[i], b_low[i]);
      float sum[4] = {};  // the tensor core cuts off what it adds to; c is added to by rounding
      mma_m16n8k8(sum, a_low, b_high);
      mma_m16n8k8(sum, a_high, b_low);
      mma_m16n8k8(sum, a_high, b_high);
#pragma unroll
      for (int i = 0; i < 4; ++i) c.x[n][i] += sum[i];
    }
  }
}

// ---- Both --------------------------------------------------------------------------------------

// What is summed over: elements of two right operands of the same place.
__device__ inline float dot(const OperandB<bfloat16>& a, const OperandB<bfloat16>& b) {
  float sum = 0;
#pragma unroll
  for (int e = 0; e < 8; ++e) sum += unpack(a.x[e / 2], e % 2) * unpack(b.x[e / 2], e % 2);
  return sum;
}
__device__ inline float dot(const OperandB<float>& a, const OperandB<float>& b) {
  float sum = 0;
#pragma unroll
  for (int e = 0; e < 8; ++e) sum += a.x[e] * b.x[e];
  return sum;
}

template <class T>
__device__ OperandA<T> operand(const Accumulator& c) {
  return operand(c, T{});
}

// A block to a tile, at (row, column), or its transpose there.
template <class AnyTile>
__device__ inline void store(const AnyTile& tile, int row, int column, const Accumulator& c) {
#pragma unroll
  for (int e = 0; e < 8; e += 2)
    *reinterpret_cast<__nv_bfloat162*>(tile.at(row + row_of(e), column + column_of(e))) =
        __floats2bfloat162_rn(c[e], c[e + 1]);
}
__device__ inline void store(const Tile<float>& tile, int row, int column, const Accumulator& c) {
#pragma unroll
  for (int e = 0; e < 8; ++e) *tile.at(row + row_of(e), column + column_of(e)) = c[e];
}
__device__ inline void store_transposed(const Tile<bfloat16>& tile, int row, int column,
                                        const Accumulator& c) {
  const OperandA<bfloat16> a = operand(c, bfloat16{});
  const int lane = lane_index();
  bfloat16* to = tile.at(row + lane / 4, column + lane % 4 * 2);
#pragma unroll
  for (int m = 0; m < 4; ++m)  // 8x8 matrices of c, down its columns
    *reinterpret_cast<uint32_t*>(to + m / 2 * 8 * tile.stride + m % 2 * 8) =
        movmatrix_trans(a.x[m]);
}
__device__ inline void store_transposed(const Tile<float>& tile, int row, int column,
                                        const Accumulator& c) {
#pragma unroll
  for (int e = 0; e < 8; ++e) *tile.at(row + column_of(e), column + row_of(e)) = c[e];
}

// The first `rows` rows of a block to global memory: whole 32-byte sectors, `row_stride` elements
// apart. Neighbouring lanes first swap a pair each, so that a row's half sectors become whole ones:
// of rows g and g + 8 a lane then has four elements at `sector_column`.
__device__ inline int sector_column() {
  return lane_index() % 4 / 2 * 4 + lane_index() % 2 * 8;
}
__device__ inline uint2 sector_part(const OperandA<bfloat16>& a, int half) {
  const bool odd = lane_index() % 2;
  const uint32_t left = a.x[half], right = a.x[half + 2];
  const uint32_t other = __shfl_xor_sync(kAllLanes, odd ? left : right, 1);
  return make_uint2(odd ? other : left, odd ? right : other);
}
__device__ inline void store_global(bfloat16* to, int64_t row_stride, int rows,
                                    const OperandA<bfloat16>& a) {
  const int row = lane_index() / 4;
  bfloat16* place = to + row * row_stride + sector_column();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint2 four = sector_part(a, half);
    if (row + 8 * half < rows) *reinterpret_cast<uint2*>(place + 8 * half * row_stride) = four;
  }
}
__device__ inline void store_global(bfloat16* to, int64_t row_stride, int rows,
                                    const Accumulator& c) {
  store_global(to, row_stride, rows, operand(c, bfloat16{}));
}
__device__ inline void store_global(float* to, int64_t row_stride, int rows, const Accumulator& c) {
#pragma unroll
  for (int e = 0; e < 8; e += 2)
    if (row_of(e) < rows)
      *reinterpret_cast<float2*>(to + row_of(e) * row_stride + column_of(e)) =
          make_float2(c[e], c[e + 1]);
}
__device__ inline Accumulator load_global(const float* from, int64_t row_stride) {
  Accumulator c;
#pragma unroll
  for (int e = 0; e < 8; e += 2) {
    const float2 pair =
        *reinterpret_cast<const float2*>(from + row_of(e) * row_stride + column_of(e));
    c[e] = pair.x;
    c[e + 1] = pair.y;
  }
  return c;
}

}  // namespace kla::KLA_BACKEND
