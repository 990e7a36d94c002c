// What threads of a block do together: barriers, votes, shuffles, reductions; and atomics.
#pragma once

#include <atomic>
#include <cstring>
#include <type_traits>

#include "tests/simt/fibers.h"

namespace kla::fibers {

using Place = std::source_location;

// bits of the lane `source` (a lane of the mask) or, where source < 0, the own ones.
uint64_t shuffle(uint32_t mask, uint64_t bits, int source, const Site&);
uint32_t ballot(uint32_t mask, bool predicate, const Site&);

enum class Reduction { add, min, max, bit_and, bit_or, bit_xor };
int64_t reduce(uint32_t mask, int64_t value, Reduction, const Site&);

template <class T>
T shuffle_value(uint32_t mask, T value, int source, const Site& site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle(mask, bits, source, site);
  std::memcpy(static_cast<void*>(&value), &bits, sizeof(T));
  return value;
}

// Shuffles stay inside segments of `width` lanes, a power of two.
inline int segment_begin(int width, const Site& site) {
  return running(site).lane & ~(width - 1);
}

template <class T, class Change>
T atomic_change(T* address, const Site& site, Change&& change) {
  preempt(site);
  std::atomic_ref<T> cell(*address);
  T old = cell.load();
  while (!cell.compare_exchange_weak(old, change(old))) {
  }
  return old;
}

}  // namespace kla::fibers

#define KLA_SIMT_PLACE ::kla::fibers::Place place = ::kla::fibers::Place::current()

inline void __syncthreads(KLA_SIMT_PLACE) {
  kla::fibers::barrier(false, {"__syncthreads", place});
}
inline int __syncthreads_count(int predicate, KLA_SIMT_PLACE) {
  return kla::fibers::barrier(predicate != 0, {"__syncthreads_count", place});
}
inline int __syncthreads_or(int predicate, KLA_SIMT_PLACE) {
  return kla::fibers::barrier(predicate != 0, {"__syncthreads_or", place}) != 0;
}
inline int __syncthreads_and(int predicate, KLA_SIMT_PLACE) {
  return kla::fibers::barrier(predicate == 0, {"__syncthreads_and", place}) == 0;
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFF, KLA_SIMT_PLACE) {
  kla::fibers::meet(mask, {"__syncwarp", place}, [](auto&) {});
}
inline unsigned __ballot_sync(unsigned mask, int predicate, KLA_SIMT_PLACE) {
  return kla::fibers::ballot(mask, predicate != 0, {"__ballot_sync", place});
}
inline int __any_sync(unsigned mask, int predicate, KLA_SIMT_PLACE) {
  return kla::fibers::ballot(mask, predicate != 0, {"__any_sync", place}) != 0;
}
inline int __all_sync(unsigned mask, int predicate, KLA_SIMT_PLACE) {
  return kla::fibers::ballot(mask, predicate != 0, {"__all_sync", place}) == mask;
}
// The lanes that have not returned: a warp is never known to be diverged here.
inline unsigned __activemask(KLA_SIMT_PLACE) {
  const kla::fibers::Warp& warp = *kla::fibers::running({"__activemask", place}).warp;
  return warp.exists & ~warp.returned;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, KLA_SIMT_PLACE) {
  const kla::fibers::Site site{"__shfl_sync", place};
  return kla::fibers::shuffle_value(
      mask, value, kla::fibers::segment_begin(width, site) | (lane & (width - 1)), site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, KLA_SIMT_PLACE) {
  const kla::fibers::Site site{"__shfl_up_sync", place};
  const int begin = kla::fibers::segment_begin(width, site);
  const int source = kla::fibers::current->lane - static_cast<int>(delta);
  return kla::fibers::shuffle_value(mask, value, source >= begin ? source : -1, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, KLA_SIMT_PLACE) {
  const kla::fibers::Site site{"__shfl_down_sync", place};
  const int end = kla::fibers::segment_begin(width, site) + width;
  const int source = kla::fibers::current->lane + static_cast<int>(delta);
  return kla::fibers::shuffle_value(mask, value, source < end ? source : -1, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, KLA_SIMT_PLACE) {
  const kla::fibers::Site site{"__shfl_xor_sync", place};
  const int end = kla::fibers::segment_begin(width, site) + width;
  const int source = kla::fibers::current->lane ^ lane_mask;
  return kla::fibers::shuffle_value(mask, value, source < end ? source : -1, site);
}

#define KLA_SIMT_REDUCE(T, name, operation)                                                   \
  inline T name(unsigned mask, T value, KLA_SIMT_PLACE) {                                     \
    return static_cast<T>(                                                                    \
        kla::fibers::reduce(mask, value, kla::fibers::Reduction::operation, {#name, place})); \
  }
KLA_SIMT_REDUCE(int, __reduce_add_sync, add)
KLA_SIMT_REDUCE(int, __reduce_min_sync, min)
KLA_SIMT_REDUCE(int, __reduce_max_sync, max)
KLA_SIMT_REDUCE(unsigned, __reduce_add_sync, add)
KLA_SIMT_REDUCE(unsigned, __reduce_min_sync, min)
KLA_SIMT_REDUCE(unsigned, __reduce_max_sync, max)
KLA_SIMT_REDUCE(unsigned, __reduce_and_sync, bit_and)
KLA_SIMT_REDUCE(unsigned, __reduce_or_sync, bit_or)
KLA_SIMT_REDUCE(unsigned, __reduce_xor_sync, bit_xor)
#undef KLA_SIMT_REDUCE

template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value, KLA_SIMT_PLACE) {
  return kla::fibers::atomic_change(address, {"atomicAdd", place},
                                    [=](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicSub(T* address, std::type_identity_t<T> value, KLA_SIMT_PLACE) {
  return kla::fibers::atomic_change(address, {"atomicSub", place},
                                    [=](T old) { return static_cast<T>(old - value); });
}
template <class T>
T atomicMax(T* address, std::type_identity_t<T> value, KLA_SIMT_PLACE) {
  return kla::fibers::atomic_change(address, {"atomicMax", place},
                                    [=](T old) { return old < value ? value : old; });
}
template <class T>
T atomicMin(T* address, std::type_identity_t<T> value, KLA_SIMT_PLACE) {
  return kla::fibers::atomic_change(address, {"atomicMin", place},
                                    [=](T old) { return value < old ? value : old; });
}
template <class T>
T atomicAnd(T* address, std::type_identity_t<T> value, KLA_SIMT_PLACE) {
  return kla::fibers::atomic_change(address, {"atomicAnd", place},
                                    [=](T old) { return old & value; });
}
template <class T>
T atomicOr(T* address, std::type_identity_t<T> value, KLA_SIMT_PLACE) {
  return kla::fibers::atomic_change(address, {"atomicOr", place},
                                    [=](T old) { return old | value; });
}
template <class T>
T atomicExch(T* address, std::type_identity_t<T> value, KLA_SIMT_PLACE) {
  return kla::fibers::atomic_change(address, {"atomicExch", place}, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value,
            KLA_SIMT_PLACE) {
  return kla::fibers::atomic_change(address, {"atomicCAS", place},
                                    [=](T old) { return old == expected ? value : old; });
}
// Counts to `last` and begins anew at 0.
inline unsigned atomicInc(unsigned* address, unsigned last, KLA_SIMT_PLACE) {
  return kla::fibers::atomic_change(address, {"atomicInc", place},
                                    [=](unsigned old) { return old >= last ? 0u : old + 1; });
}

[[noreturn]] inline void __trap(KLA_SIMT_PLACE) {
  kla::fibers::fail({"__trap", place}, "the kernel gave up");
}
