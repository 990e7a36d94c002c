// launch() and SharedMemory of the device `simt`, with the interface of kernels/cuda/launch.cuh.
#pragma once

#include <cstddef>
#include <functional>
#include <tuple>

#include "core/context.h"
#include "tests/simt/fibers.h"

namespace kla::simt {

struct Shape;  // kernels/cuda/launch.cuh

// Fresh arrays are NaN. Error if the arrays take more than the launch declares, or if a thread asks
// for others than the rest of its block.
class SharedMemory {
 public:
  template <class T>
  T* array(int count, std::source_location place = std::source_location::current()) {
    static_assert(alignof(T) <= 128);
    return static_cast<T*>(fibers::shared_array(next_++, static_cast<size_t>(count) * sizeof(T),
                                                {"SharedMemory::array", place}));
  }

 private:
  size_t next_ = 0;
};

void launch_threads(const Context&, const Shape&, std::function<void()> thread);

// Every thread gets its own copy of the arguments. Blocks run in parallel on context.pool, threads
// in the order that the environment variable KLA_SIMT_SEED draws, if it is not 0.
template <class... Parameters, class... Args>
void launch(const Context& context, void (*kernel)(Parameters...), const Shape& shape,
            Args&&... args) {
  static_assert(sizeof...(Parameters) == sizeof...(Args));
  launch_threads(context, shape,
                 [kernel, arguments = std::tuple<Parameters...>(static_cast<Parameters>(args)...)] {
                   std::apply(kernel, arguments);
                 });
}

}  // namespace kla::simt
