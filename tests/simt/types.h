// CUDA's keywords and vector types for the host compiler, with CUDA's sizes and alignments.
#pragma once

#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

inline constexpr int warpSize = 32;

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define KLA_SIMT_VECTOR2(T, name, alignment) \
  struct alignas(alignment) name {           \
    T x, y;                                  \
  };                                         \
  constexpr name make_##name(T x, T y) {     \
    return {x, y};                           \
  }
#define KLA_SIMT_VECTOR4(T, name, alignment)       \
  struct alignas(alignment) name {                 \
    T x, y, z, w;                                  \
  };                                               \
  constexpr name make_##name(T x, T y, T z, T w) { \
    return {x, y, z, w};                           \
  }

KLA_SIMT_VECTOR2(float, float2, 8)
KLA_SIMT_VECTOR2(int, int2, 8)
KLA_SIMT_VECTOR2(unsigned, uint2, 8)
KLA_SIMT_VECTOR2(double, double2, 16)
KLA_SIMT_VECTOR2(long long, longlong2, 16)
KLA_SIMT_VECTOR2(short, short2, 4)
KLA_SIMT_VECTOR2(unsigned short, ushort2, 4)
KLA_SIMT_VECTOR4(float, float4, 16)
KLA_SIMT_VECTOR4(int, int4, 16)
KLA_SIMT_VECTOR4(unsigned, uint4, 16)
KLA_SIMT_VECTOR4(short, short4, 8)
KLA_SIMT_VECTOR4(unsigned short, ushort4, 8)
KLA_SIMT_VECTOR4(unsigned char, uchar4, 4)

#undef KLA_SIMT_VECTOR2
#undef KLA_SIMT_VECTOR4

struct float3 {
  float x, y, z;
};
constexpr float3 make_float3(float x, float y, float z) {
  return {x, y, z};
}
constexpr uint3 make_uint3(unsigned x, unsigned y, unsigned z) {
  return {x, y, z};
}
