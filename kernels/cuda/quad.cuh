// Four neighbouring channels: the unit in which the mixer's elementwise kernels move data, 8 bytes
// of bf16 or 16 of f32. Rows of column views may start anywhere: kernels come twice, for aligned
// quads and for quads that are moved element by element.
#pragma once

#include <initializer_list>

#include "kernels/cuda/reduce.cuh"

namespace kla::KLA_BACKEND {

struct Quad {
  float v[4];
  __device__ float& operator[](int i) { return v[i]; }
  __device__ float operator[](int i) const { return v[i]; }
};

// As loaded: kept so until used, it takes half the registers.
template <class T>
struct PackedQuad;
template <>
struct PackedQuad<float> {
  float4 bits;
};
template <>
struct PackedQuad<bfloat16> {
  uint2 bits;
};

__device__ inline Quad unpack(const PackedQuad<float>& p) {
  return {{p.bits.x, p.bits.y, p.bits.z, p.bits.w}};
}
__device__ inline Quad unpack(const PackedQuad<bfloat16>& p) {  // bf16 is the upper half of an f32
  return {{__uint_as_float(p.bits.x << 16), __uint_as_float(p.bits.x & 0xFFFF0000u),
           __uint_as_float(p.bits.y << 16), __uint_as_float(p.bits.y & 0xFFFF0000u)}};
}

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(bfloat16 x) {
  return __bfloat162float(x);
}
template <class T>
__device__ T from_float(float x) {
  if constexpr (sizeof(T) == 2)
    return __float2bfloat16(x);
  else
    return x;
}

template <class T>
__device__ PackedQuad<T> pack(const Quad& q) {
  PackedQuad<T> p;
  if constexpr (sizeof(T) == 2)
    p.bits = make_uint2(pack_bf16(q[0], q[1]), pack_bf16(q[2], q[3]));
  else
    p.bits = make_float4(q[0], q[1], q[2], q[3]);
  return p;
}

template <bool kAligned, class T>
__device__ PackedQuad<T> load_quad(const T* p) {
  if constexpr (kAligned)
    return *reinterpret_cast<const PackedQuad<T>*>(p);
  else
    return pack<T>({{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])}});
}

template <bool kAligned, class T>
__device__ void store_quad(T* p, const Quad& q) {
  if constexpr (kAligned && sizeof(T) == 2) {  // as one number: two might be stored one by one
    const uint64_t low = pack_bf16(q[0], q[1]), high = pack_bf16(q[2], q[3]);
    *reinterpret_cast<uint64_t*>(p) = high << 32 | low;
  } else if constexpr (kAligned) {
    *reinterpret_cast<PackedQuad<T>*>(p) = pack<T>(q);
  } else {
    for (int i = 0; i < 4; ++i) p[i] = from_float<T>(q[i]);
  }
}

// Whether every row of every view starts at a multiple of a quad, as the model's do.
inline bool quads_aligned(std::initializer_list<View> views) {
  for (const View& view : views) {
    const auto bytes = static_cast<uintptr_t>(4 * size_of(view.dtype));
    if (view.empty()) continue;
    if (reinterpret_cast<uintptr_t>(view.data) % bytes != 0 || view.stride % 4 != 0) return false;
  }
  return true;
}

// What the mixer's kernels take; anything else is refused by the key that chose it.
constexpr int kMaxKeyDim = 256, kMaxValueDim = 1 << 16;

inline void require_head_dims(int64_t K, int64_t V) {
  const auto require = [](const char* key, int64_t value, int most) {
    if (value > 0 && value % 16 == 0 && value <= most) return;
    throw Error(Exit::usage,
                std::string(key) + ": the CUDA kernels do not take " + std::to_string(value),
                "use a multiple of 16 up to " + std::to_string(most));
  };
  require("model.key_head_dim", K, kMaxKeyDim);
  require("model.value_head_dim", V, kMaxValueDim);
}

}  // namespace kla::KLA_BACKEND
