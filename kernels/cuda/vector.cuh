// Vectors of 16 bytes and more: how pointwise kernels read and write memory, and what they compute
// per element. Values are f32 in registers whatever the type in memory.
#pragma once

#include <algorithm>
#include <bit>
#include <type_traits>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace kla::KLA_BACKEND {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// Elements of a vector: 16 bytes of bf16. Kernels that write f32 take kFloatVector: two 16-byte
// writes of one thread would each leave half of every 32-byte sector to the other.
inline constexpr int kVector = 8;
inline constexpr int kFloatVector = 4;

// The bits of two neighbours, rounded to bf16; the first in the lower half.
__device__ inline uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// N elements in memory; one 16-byte access each where they fill it. bf16 is kept in pairs: as
// elements they would take a register each.
template <int N, class T>
inline constexpr int kPackedBytes = N * sizeof(T) < 16 ? N * sizeof(T) : 16;
template <class T, int N>
struct alignas(kPackedBytes<N, T>) Packed {
  T element[N];

  __device__ float get(int i) const { return static_cast<float>(element[i]); }
  __device__ void set(const float (&values)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) element[i] = static_cast<T>(values[i]);
  }
};
template <int N>
requires(N % 2 == 0) struct alignas(kPackedBytes<N, bfloat16>) Packed<bfloat16, N> {
  uint32_t pair[N / 2];

  __device__ float get(int i) const {  // bf16 is the upper half of an f32
    return __uint_as_float(i % 2 ? pair[i / 2] & 0xFFFF0000u : pair[i / 2] << 16);
  }
  __device__ void set(const float (&values)[N]) {
#pragma unroll
    for (int i = 0; i < N; i += 2) pair[i / 2] = pack_bf16(values[i], values[i + 1]);
  }
};

template <int N, class T>
__device__ inline Packed<T, N> load_packed(const T* from) {
  return *reinterpret_cast<const Packed<T, N>*>(from);
}
template <class T, int N>
__device__ inline void unpack(float (&values)[N], const Packed<T, N>& packed) {
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = packed.get(i);
}
template <int N, class T>
__device__ inline void load(float (&values)[N], const T* from) {
  unpack(values, load_packed<N>(from));
}

template <int N, class T>
__device__ inline void store(T* to, const float (&values)[N]) {
  Packed<T, N> packed;
  packed.set(values);
  if constexpr (sizeof packed == 8)  // as one number: two might be stored one by one
    *reinterpret_cast<uint64_t*>(to) = std::bit_cast<uint64_t>(packed);
  else
    *reinterpret_cast<Packed<T, N>*>(to) = packed;
}

// Elements before a row of a matrix: one instruction, as neither factor needs 64 bits.
__device__ inline uint64_t elements_before(int row, int64_t stride) {
  return uint64_t{static_cast<unsigned>(row)} * static_cast<unsigned>(stride);
}

// A matrix as a kernel sees it: rows `stride` elements apart.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;

  __device__ T* operator[](int64_t row) const { return data + row * stride; }
};

template <class T>
Rows<T> rows(const View& view) {
  return {pointer<T>(view), view.stride};
}

// Whether every row of a view can be walked in vectors. An absent view can.
inline bool vectorizable(const View& view) {
  if (view.empty()) return true;
  return view.cols() % kVector == 0 && view.stride % kVector == 0 &&
         reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
}

template <int N>
using Width = std::integral_constant<int, N>;

// Calls visit(Width<N>{}) with N = kWide if all views allow it, else 1: rare shapes pay with
// speed. What a dry run plans must not depend on it.
template <int kWide = kVector, class Visit, class... Views>
void visit_width(Visit&& visit, const Views&... views) {
  if ((vectorizable(views) && ...)) return visit(Width<kWide>{});
  visit(Width<1>{});
}

// Threads of a block that walks rows of `cols` elements, N at a time: whole warps.
inline unsigned row_threads(int64_t cols, int N, unsigned most = 256) {
  const int64_t warps = (cols + int64_t{N} * kWarp - 1) / (int64_t{N} * kWarp);
  return kWarp * static_cast<unsigned>(std::clamp<int64_t>(warps, 1, most / kWarp));
}

// 1 / (1 + e^-x), good to a few ulp, and |x| more where it is small.
__device__ inline float sigmoid_fast(float x) {
  return reciprocal_fast(1 + exp2_fast(-1.4426950408889634f * x));
}

// x sig(x) and its derivative. What is rounded to bf16 needs no better than sigmoid_fast.
struct Silu {
  float value, slope;
};
template <class T>
__device__ Silu silu(float x) {
  const float s = sizeof(T) == 2 ? sigmoid_fast(x) : 1.0f / (1.0f + expf(-x));
  return {x * s, s * (1.0f + x * (1.0f - s))};
}

}  // namespace kla::KLA_BACKEND
