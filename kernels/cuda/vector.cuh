// Vectors of 16 bytes and more: how pointwise kernels read and write memory, and what they compute
// per element. Values are f32 in registers whatever the type in memory.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/launch.cuh"

namespace kla::KLA_BACKEND {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// Elements of a vector: 16 bytes of bf16. Kernels that write f32 take kFloatVector: two 16-byte
// writes of one thread would each leave half of every 32-byte sector to the other.
inline constexpr int kVector = 8;
inline constexpr int kFloatVector = 4;

// N elements in memory; one 16-byte access each where they fill it.
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Packed {
  T element[N];
};

template <int N, class T>
__device__ inline void load(float (&values)[N], const T* from) {
  const Packed<T, N> packed = *reinterpret_cast<const Packed<T, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = static_cast<float>(packed.element[i]);
}

template <int N, class T>
__device__ inline void store(T* to, const float (&values)[N]) {
  Packed<T, N> packed;
#pragma unroll
  for (int i = 0; i < N; ++i) packed.element[i] = static_cast<T>(values[i]);
  *reinterpret_cast<Packed<T, N>*>(to) = packed;
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

struct Silu {
  float value, slope;  // x sig(x) and its derivative
};
__device__ inline Silu silu(float x) {
  const float s = 1.0f / (1.0f + expf(-x));
  return {x * s, s * (1.0f + x * (1.0f - s))};
}

}  // namespace kla::KLA_BACKEND
