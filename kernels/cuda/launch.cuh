// What every kernel file of the CUDA backend starts from. The same .cu files are compiled twice:
// by nvcc for the device `cuda`, and by the host compiler against tests/simt/ for the device
// `simt`, which runs every CUDA thread as a fiber. KLA_BACKEND is the name of the device being
// built and of the namespace that holds its code.
//
// Rules that keep both possible: launches go through launch(), shared memory comes from
// SharedMemory, PTX stands in ptx.cuh, no cooperative groups, no __shared__ variables.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>

#include "core/bf16.h"
#include "core/context.h"
#include "core/error.h"
#include "core/op.h"
#include "kernels/cuda/runtime.h"

namespace kla {
template <>
struct DTypeOf<__nv_bfloat16> {
  static constexpr DType value = DType::bf16;
};
}  // namespace kla

namespace kla::KLA_BACKEND {

using bfloat16 = __nv_bfloat16;

struct Shape {
  dim3 grid;
  unsigned threads = 0;     // of a block
  size_t shared_bytes = 0;  // dynamic, as SharedSize counts
};

// What a block may take on every GPU we run on (sm_80 has the least): kernels that take more ask
// has_shared_memory() first.
inline constexpr size_t kSharedMemory = 163 * 1024;

// Bytes that a sequence of SharedMemory::array() calls takes; the host's side of a kernel's layout.
class SharedSize {
 public:
  static constexpr size_t kAlignment = 128;
  template <class T>
  constexpr SharedSize& array(int64_t count) {
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return *this;
  }
  constexpr size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

// Division by a number that the host knows at launch: a product and a shift, exact for dividends
// below 2^31.
struct Divisor {
  struct Result {
    int quotient, rest;
  };
  int by;
  int shift;
  uint32_t factor;  // 2^shift / by, rounded up, in [2^31, 2^32)

  explicit Divisor(int number) : by(number), shift(31) {
    while (int64_t{1} << (shift - 31) < by) ++shift;
    const auto divisor = static_cast<uint64_t>(std::max(by, 1));
    factor = static_cast<uint32_t>(((uint64_t{1} << shift) + divisor - 1) / divisor);
  }
  __device__ Result divide(unsigned x) const {
    const int quotient = static_cast<int>(uint64_t{x} * factor >> shift);
    return {quotient, static_cast<int>(x) - quotient * by};
  }
};

#ifdef KLA_SIMT

using ::kla::simt::SharedMemory;  // same interface; NaN-filled, with poisoned red zones between

// launch() of this device stands in tests/simt/cuda_runtime.h.
using ::kla::simt::launch;

#else

// Hands out the block's shared memory: every thread calls array() in the same order with the same
// counts and gets the same 128-byte aligned pointers.
class SharedMemory {
 public:
  __device__ SharedMemory() {
    extern __shared__ __align__(128) unsigned char kla_dynamic_shared[];
    next_ = kla_dynamic_shared;
  }
  template <class T>
  __device__ T* array(int count) {
    T* result = reinterpret_cast<T*>(next_);
    next_ += (static_cast<size_t>(count) * sizeof(T) + SharedSize::kAlignment - 1) /
             SharedSize::kAlignment * SharedSize::kAlignment;
    return result;
  }

 private:
  unsigned char* next_;
};

// kernel<<<shape>>>(args...) on stream(); nothing in a dry run or with an empty grid.
template <class... Parameters, class... Args>
void launch(const Context& context, void (*kernel)(Parameters...), const Shape& shape,
            Args&&... args) {
  if (context.dry_run || shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  if (shape.shared_bytes > 48 * 1024)
    KLA_CUDA_CHECK(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shape.shared_bytes)));
  // clang-format off
  kernel<<<shape.grid, shape.threads, shape.shared_bytes, stream()>>>(
      static_cast<Parameters>(args)...);
  // clang-format on
  KLA_CUDA_CHECK(cudaGetLastError());
}

#endif

// Calls visit(T{}) with the compute type of the context: bfloat16 or float.
template <class Visit>
void visit_compute(const Context& context, Visit&& visit) {
  if (context.compute == DType::bf16) return visit(bfloat16{});
  KLA_CHECK(context.compute == DType::f32, name_of(context.compute));
  visit(float{});
}

// Typed device pointer of a view; bf16 views as the device's own type.
template <class T>
T* pointer(const View& view) {
  if (view.empty()) return nullptr;
  KLA_CHECK(view.dtype == DTypeOf<T>::value, view.describe());
  return static_cast<T*>(view.data);
}

}  // namespace kla::KLA_BACKEND
