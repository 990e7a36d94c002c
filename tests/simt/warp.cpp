#include "tests/simt/warp.h"

#include <algorithm>
#include <bit>
#include <string>

namespace kla::fibers {
namespace {

struct Shuffled {
  uint64_t bits;
  int source;
};

template <class Visit>
void for_each_lane(uint32_t mask, Visit&& visit) {
  for (; mask; mask &= mask - 1) visit(std::countr_zero(mask));
}

}  // namespace

uint64_t shuffle(uint32_t mask, uint64_t bits, int source, const Site& site) {
  const Thread& t = running(site);
  if (source >= 0 && !(mask >> source & 1))
    fail(site, "reads lane " + std::to_string(source) + ", which is not in the mask");
  t.warp->brought<Shuffled>(t.lane) = {bits, source < 0 ? t.lane : source};
  meet(mask, site, [&](Warp& warp) {
    for_each_lane(mask, [&](int lane) {
      const int from = warp.brought<Shuffled>(lane).source;
      warp.taken<uint64_t>(lane) = warp.brought<Shuffled>(from).bits;
    });
  });
  return t.warp->taken<uint64_t>(t.lane);
}

uint32_t ballot(uint32_t mask, bool predicate, const Site& site) {
  const Thread& t = running(site);
  t.warp->brought<uint32_t>(t.lane) = predicate;
  meet(mask, site, [&](Warp& warp) {
    uint32_t votes = 0;
    for_each_lane(mask, [&](int lane) { votes |= warp.brought<uint32_t>(lane) << lane; });
    for_each_lane(mask, [&](int lane) { warp.taken<uint32_t>(lane) = votes; });
  });
  return t.warp->taken<uint32_t>(t.lane);
}

int64_t reduce(uint32_t mask, int64_t value, Reduction reduction, const Site& site) {
  const auto combined = [reduction](int64_t a, int64_t b) {
    switch (reduction) {
      case Reduction::add:
        return a + b;
      case Reduction::min:
        return std::min(a, b);
      case Reduction::max:
        return std::max(a, b);
      case Reduction::bit_and:
        return a & b;
      case Reduction::bit_or:
        return a | b;
      case Reduction::bit_xor:
        return a ^ b;
    }
    return a;
  };
  const Thread& t = running(site);
  t.warp->brought<int64_t>(t.lane) = value;
  meet(mask, site, [&](Warp& warp) {
    int64_t result = warp.brought<int64_t>(std::countr_zero(mask));
    for_each_lane(mask & (mask - 1),
                  [&](int lane) { result = combined(result, warp.brought<int64_t>(lane)); });
    for_each_lane(mask, [&](int lane) { warp.taken<int64_t>(lane) = result; });
  });
  return t.warp->taken<int64_t>(t.lane);
}

}  // namespace kla::fibers
