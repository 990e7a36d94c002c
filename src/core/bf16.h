// bf16 on the host: the upper half of an f32. Arithmetic happens in f32; this type only stores.
#pragma once

#include <bit>
#include <cstdint>

#include "core/view.h"

namespace kla {

struct bf16 {
  uint16_t bits = 0;

  bf16() = default;
  // Rounds to nearest, ties to even; NaN stays NaN.
  explicit bf16(float value) {
    const auto u = std::bit_cast<uint32_t>(value);
    const bool nan = (u & 0x7FFFFFFFu) > 0x7F800000u;
    bits = static_cast<uint16_t>(nan ? (u >> 16) | 0x40u : (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
  }
  explicit operator float() const {
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
};
static_assert(sizeof(bf16) == 2);

template <>
struct DTypeOf<bf16> {
  static constexpr DType value = DType::bf16;
};

}  // namespace kla
