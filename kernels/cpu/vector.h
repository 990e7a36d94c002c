// Google Highway helpers shared by the vectorised kernels. Included once per instruction set by
// files that use foreach_target.h, hence the toggling guard.
#if defined(KLA_KERNELS_CPU_VECTOR_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KLA_KERNELS_CPU_VECTOR_H
#undef KLA_KERNELS_CPU_VECTOR_H
#else
#define KLA_KERNELS_CPU_VECTOR_H
#endif

#include <cstdint>

#include "hwy/cache_control.h"
#include "hwy/highway.h"

// After the parameters of a lambda: compiled for the instruction set at hand, and always inlined.
#ifndef KLA_LANES_INLINE
#define KLA_LANES_INLINE HWY_ATTR __attribute__((always_inline))
#endif

HWY_BEFORE_NAMESPACE();
namespace kla::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes, so that the 64 columns of a chunk tile are whole vectors on every machine.
using Lanes = hn::CappedTag<float, 16>;
using FewLanes = hn::CappedTag<float, 4>;
using OneLane = hn::CappedTag<float, 1>;

// Calls f(tag, i) over [0, n): whole vectors, then fours, then single elements. Never reads beyond
// n.
template <class F>
HWY_INLINE void for_lanes(int64_t n, F&& f) {
  const Lanes d;
  const int64_t step = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + step <= n; i += step) f(d, i);
  for (; i + 4 <= n; i += 4) f(FewLanes(), i);
  for (; i < n; ++i) f(OneLane(), i);
}

template <class D>
HWY_INLINE float sum_of(D d, hn::Vec<D> v) {
  return hn::GetLane(hn::SumOfLanes(d, v));
}

// Sum over [0, n) of the vectors f(tag, i); f may store as well.
template <class F>
HWY_INLINE float sum_lanes(int64_t n, F&& f) {
  const Lanes d;
  const int64_t step = static_cast<int64_t>(hn::Lanes(d));
  auto even = hn::Zero(d), odd = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * step <= n; i += 2 * step) {
    even = hn::Add(even, f(d, i));
    odd = hn::Add(odd, f(d, i + step));
  }
  if (i + step <= n) {
    even = hn::Add(even, f(d, i));
    i += step;
  }
  float sum = sum_of(d, hn::Add(even, odd));
  for (; i + 4 <= n; i += 4) sum += sum_of(FewLanes(), f(FewLanes(), i));
  for (; i < n; ++i) sum += sum_of(OneLane(), f(OneLane(), i));
  return sum;
}

// Fetches a row that a later iteration reads: rows of one head lie a whole token apart, too far for
// the hardware's prefetcher.
HWY_INLINE void prefetch_row(const float* row, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) hwy::Prefetch(row + i);
}

}  // namespace kla::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
