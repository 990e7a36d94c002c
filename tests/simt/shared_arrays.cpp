#include "tests/simt/shared_arrays.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "core/error.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) (static_cast<void>(p), static_cast<void>(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) (static_cast<void>(p), static_cast<void>(n))
#endif

namespace kla::fibers {
namespace {

constexpr size_t round_up(size_t bytes, size_t to) {
  return (bytes + to - 1) / to * to;
}

// What a red zone holds: read as bf16 or as f32 it is NaN.
[[maybe_unused]] std::byte pattern(size_t offset) {
  return offset % 2 == 0 ? std::byte{0xA5} : std::byte{0xFF};
}

}  // namespace

SharedArrays::SharedArrays()
    : memory_(static_cast<std::byte*>(operator new (kCapacity, std::align_val_t{kAlignment}))) {
  ASAN_POISON_MEMORY_REGION(memory_, kCapacity);
}

SharedArrays::~SharedArrays() {
  ASAN_UNPOISON_MEMORY_REGION(memory_, kCapacity);
  operator delete (memory_, std::align_val_t{kAlignment});
}

void SharedArrays::fence(size_t begin, size_t end) {
#ifdef __SANITIZE_ADDRESS__
  ASAN_POISON_MEMORY_REGION(memory_ + begin, end - begin);
#else
  for (size_t i = begin; i < end; ++i) memory_[i] = pattern(i);
#endif
}

size_t SharedArrays::limit() {
  static const size_t bytes = [] {
    const char* kilobytes = std::getenv("KLA_SIMT_SHARED_KB");
    const size_t wanted = kilobytes ? std::strtoul(kilobytes, nullptr, 10) * 1024 : 163 * 1024;
    return wanted < kMost ? wanted : kMost;
  }();
  return bytes;
}

void SharedArrays::begin(size_t declared_bytes) {
  if (declared_bytes > limit())
    throw Error(Exit::internal,
                "simt: a launch declares " + std::to_string(declared_bytes) +
                    " bytes of shared memory; a block has " + std::to_string(limit()),
                "use smaller tiles");
  if (!arrays_.empty()) ASAN_POISON_MEMORY_REGION(memory_, arrays_.back().next);
  fence(0, kRedZone);
  arrays_.clear();
  declared_ = declared_bytes;
  taken_ = 0;
}

void* SharedArrays::array(size_t index, size_t bytes, const Site& site) {
  if (index < arrays_.size()) {
    const Array& found = arrays_[index];
    if (found.end - found.begin != bytes)
      fail(site,
           "array " + std::to_string(index) + " has " + std::to_string(bytes) + " bytes here and " +
               std::to_string(found.end - found.begin) + " at " + describe(found.site),
           "every thread must ask for the same arrays in the same order");
    return memory_ + found.begin;
  }
  taken_ += round_up(bytes, kAlignment);
  if (taken_ > declared_)
    fail(site,
         "the arrays take " + std::to_string(taken_) + " bytes, the launch declares " +
             std::to_string(declared_),
         "count every array in the launch's SharedSize");
  if (arrays_.size() == kMaxArrays)
    fail(site, "more than " + std::to_string(kMaxArrays) + " arrays");
  const size_t begin = arrays_.empty() ? kRedZone : arrays_.back().next;
  const size_t end = begin + bytes, next = round_up(end, kAlignment) + kRedZone;
  ASAN_UNPOISON_MEMORY_REGION(memory_ + begin, bytes);
  std::memset(memory_ + begin, 0xFF, bytes);
  fence(end, next);
  arrays_.push_back({begin, end, next, site});
  return memory_ + begin;
}

void SharedArrays::check_red_zones() const {
#ifndef __SANITIZE_ADDRESS__
  size_t begin = 0;
  for (size_t i = 0; i <= arrays_.size(); ++i) {
    const size_t end = i < arrays_.size() ? arrays_[i].begin
                       : arrays_.empty()  ? 0
                                          : arrays_[i - 1].next;
    for (size_t byte = begin; byte < end; ++byte)
      if (memory_[byte] != pattern(byte)) {
        const bool before = i == 0;
        const Array& array = arrays_[before ? 0 : i - 1];
        const size_t distance = before ? array.begin - byte : byte - array.end;
        throw Error(Exit::internal,
                    "simt: out of bounds: something was written " + std::to_string(distance) +
                        " bytes " + (before ? "before" : "behind the end of") + " shared array " +
                        std::to_string(before ? 0 : i - 1) + " of " +
                        std::to_string(array.end - array.begin) + " bytes, " + describe(array.site),
                    "build with AddressSanitizer (preset asan) to see who writes");
      }
    if (i < arrays_.size()) begin = arrays_[i].end;
  }
#endif
}

bool SharedArrays::holds(const void* pointer, size_t bytes) const {
  const auto* first = static_cast<const std::byte*>(pointer);
  for (const Array& array : arrays_)
    if (first >= memory_ + array.begin && first + bytes <= memory_ + array.end) return true;
  return false;
}

}  // namespace kla::fibers
