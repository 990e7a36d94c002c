// Context: what every op is called with: the device it runs on, its number types, threads and
// scratch.
#pragma once

#include <cstdint>

#include "core/arena.h"
#include "core/thread_pool.h"
#include "core/view.h"

namespace kla {

// `reference` is the readable specification in double; it is a device like the others, so the whole
// model runs on it and the tests compare any other device with it op by op.
enum class Device : uint8_t { reference, cpu, cuda, simt };
inline constexpr int kDevices = 4;
const char* name_of(Device device);

struct OpObserver;  // core/op.h

struct Context {
  Device device = Device::cpu;
  DType compute = DType::f32;  // activations and saved states
  DType accumulate =
      DType::f32;  // residual stream, gates, statistics, carried states, master weights
  ThreadPool* pool = nullptr;
  Arena* scratch = nullptr;  // an op takes what it needs here and gives it back before it returns
  OpObserver* observer = nullptr;  // optional: sees every op called
  bool dry_run = false;            // plan memory: everything runs except the tasks

  // The one way an op does work. In a dry run nothing is called, so an op may touch memory only in
  // here.
  template <class Task>
  void parallel(int64_t tasks, Task&& task) const {
    if (!dry_run) pool->run(tasks, task);
  }
};

void zero_fill(const Context&, View dense);

}  // namespace kla
