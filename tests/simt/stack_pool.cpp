#include "tests/simt/stack_pool.h"

#include <sys/mman.h>

#include "core/error.h"

namespace kla::fibers {

StackPool::~StackPool() {
  if (memory_) munmap(memory_, count_ * kPitch);
}

void StackPool::reserve(size_t count) {
  if (count <= count_) return;
  if (memory_) munmap(memory_, count_ * kPitch);
  memory_ = nullptr;
  void* mapped = mmap(nullptr, count * kPitch, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw_errno("simt: stacks of " + std::to_string(count) + " threads");
  memory_ = static_cast<std::byte*>(mapped);
  count_ = count;
  for (size_t i = 0; i < count; ++i)
    if (mprotect(memory_ + i * kPitch, kGuard, PROT_NONE) != 0)
      throw_errno("simt: guard page of a stack");
}

std::byte* StackPool::top(size_t i) const {
  constexpr size_t kColours = 16, kStagger = 256;
  return bottom(i) + kSize - i % kColours * kStagger;
}

}  // namespace kla::fibers
