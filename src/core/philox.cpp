#include "core/philox.h"

#include <bit>
#include <cmath>
#include <numbers>

#include "core/error.h"
#include "core/hash.h"

namespace kla {
namespace {

std::array<uint32_t, 2> key_of(uint64_t seed) {
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
}

std::array<uint32_t, 4> counter_of(uint64_t index, uint64_t name) {
  return {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
          static_cast<uint32_t>(name), static_cast<uint32_t>(name >> 32)};
}

uint64_t join(uint32_t low, uint32_t high) {
  return low | (static_cast<uint64_t>(high) << 32);
}

double to_unit(uint64_t bits) {
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

}  // namespace

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> c, std::array<uint32_t, 2> k) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0], p1 = uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(p0)};
    k = {k[0] + 0x9E3779B9u, k[1] + 0xBB67AE85u};
  }
  return c;
}

RandomStream::RandomStream(uint64_t seed, std::string_view name)
    : key_(key_of(seed)), name_(xxh3_64(name.data(), name.size())) {}

uint64_t RandomStream::bits(uint64_t index) const {
  const auto r = philox4x32(counter_of(index, name_), key_);
  return join(r[0], r[1]);
}

double RandomStream::uniform(uint64_t index) const {
  return to_unit(bits(index));
}

double RandomStream::uniform(uint64_t index, double low, double high) const {
  return low + (high - low) * uniform(index);
}

double RandomStream::normal(uint64_t index) const {
  const auto r = philox4x32(counter_of(index, name_), key_);
  const double u = 1.0 - to_unit(join(r[0], r[1]));  // (0, 1]: the logarithm is finite
  const double v = to_unit(join(r[2], r[3]));
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

RandomPermutation::RandomPermutation(uint64_t n, uint64_t seed, std::string_view name)
    : n_(n), key_(key_of(seed)), name_(xxh3_64(name.data(), name.size())) {
  KLA_CHECK(n >= 1, "a permutation needs at least one element");
  half_bits_ = (static_cast<int>(std::bit_width(n - 1)) + 1) / 2;
  if (half_bits_ == 0) half_bits_ = 1;
}

uint64_t RandomPermutation::operator()(uint64_t index) const {
  KLA_CHECK(index < n_, "permutation index");
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t x = index;
  do {  // the network permutes 4^half_bits >= n values; walk until we are back inside
    uint64_t left = x >> half_bits_, right = x & mask;
    for (uint32_t round = 0; round < 6; ++round) {
      const auto r =
          philox4x32({static_cast<uint32_t>(right), static_cast<uint32_t>(right >> 32),
                      static_cast<uint32_t>(name_) ^ round, static_cast<uint32_t>(name_ >> 32)},
                     key_);
      const uint64_t next = left ^ (join(r[0], r[1]) & mask);
      left = right;
      right = next;
    }
    x = (left << half_bits_) | right;
  } while (x >= n_);
  return x;
}

}  // namespace kla
