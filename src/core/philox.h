// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011). A stream is named by (seed, name); its i-th number is a pure function of i,
// so the same bits appear on every device, thread count and world size, and there is no state to
// save.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace kla {

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

class RandomStream {
 public:
  RandomStream(uint64_t seed, std::string_view name);
  uint64_t bits(uint64_t index) const;
  double uniform(uint64_t index) const;                           // [0, 1), 53 bits
  double uniform(uint64_t index, double low, double high) const;  // [low, high)
  double normal(uint64_t index) const;                            // N(0, 1), Box-Muller

 private:
  std::array<uint32_t, 2> key_;
  uint64_t name_;
};

// A bijection of [0, n) keyed by (seed, name): a Feistel network over Philox with cycle walking.
// O(1) memory.
class RandomPermutation {
 public:
  RandomPermutation(uint64_t n, uint64_t seed, std::string_view name);
  uint64_t operator()(uint64_t index) const;  // index < n

 private:
  uint64_t n_;
  int half_bits_;
  std::array<uint32_t, 2> key_;
  uint64_t name_;
};

}  // namespace kla
