// Stacks of fibers: one mapping, a guard page below each stack. They start at staggered offsets,
// otherwise the hot ends of all of them would share a few cache sets.
#pragma once

#include <cstddef>

namespace kla::fibers {

class StackPool {
 public:
  ~StackPool();
  void reserve(size_t count);  // unmaps what was there if it has to grow
  std::byte* bottom(size_t i) const { return memory_ + i * kPitch + kGuard; }
  std::byte* top(size_t i) const;
  static constexpr size_t size() { return kSize; }

 private:
#ifdef __SANITIZE_ADDRESS__
  static constexpr size_t kSize = 256 * 1024;
#else
  static constexpr size_t kSize = 128 * 1024;
#endif
  static constexpr size_t kGuard = 4096, kPitch = kSize + kGuard;
  std::byte* memory_ = nullptr;
  size_t count_ = 0;
};

}  // namespace kla::fibers
