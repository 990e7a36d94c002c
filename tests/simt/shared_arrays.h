// The shared memory of a block as the simt device keeps it: fresh arrays are NaN, and red zones
// before and behind each catch what runs over: AddressSanitizer at once, other builds by a pattern
// that is checked at every barrier and at the end of the block.
#pragma once

#include <cstddef>
#include <vector>

#include "tests/simt/fibers.h"

namespace kla::fibers {

class SharedArrays {
 public:
  static constexpr size_t kMost = 227 * 1024;  // of a block, compute capability 9.0
  static constexpr size_t kAlignment = 128;    // as SharedSize in kernels/cuda/launch.cuh counts
  // Bytes a block may have: 163 kB as on compute capability 8.0, or KLA_SIMT_SHARED_KB of them.
  static size_t limit();

  SharedArrays();
  ~SharedArrays();
  SharedArrays(const SharedArrays&) = delete;
  SharedArrays& operator=(const SharedArrays&) = delete;

  void begin(size_t declared_bytes);  // of a block: forgets all arrays
  // The array asked for as number `index`; made by the first thread that comes.
  void* array(size_t index, size_t bytes, const Site&);
  void check_red_zones() const;  // Error naming the array beside which something was written
  bool holds(const void* pointer, size_t bytes) const;

 private:
  static constexpr size_t kRedZone = 256, kMaxArrays = 96;
  static constexpr size_t kCapacity = kMost + (kMaxArrays + 1) * kRedZone;
  struct Array {
    size_t begin, end;  // the red zone behind it reaches to `next`
    size_t next;
    Site site;
  };
  void fence(size_t begin, size_t end);

  std::byte* memory_;
  std::vector<Array> arrays_;
  size_t declared_ = 0, taken_ = 0;  // bytes as the device counts them
};

}  // namespace kla::fibers
