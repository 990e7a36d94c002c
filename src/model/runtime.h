// Runtime: where a model runs: the device, its number types, the threads and the memory.
#pragma once

#include "config/config.h"
#include "core/device.h"
#include "core/memory.h"
#include "model/parameters.h"

namespace kla {

// What `device.backend` and `device.dtype` come to on this machine.
Device choose_device(const DeviceConfig&);
DType choose_compute_type(const DeviceConfig&, Device);

struct Runtime {
  // Error{usage} for a device or number type that this build or machine does not have.
  explicit Runtime(const DeviceConfig&);
  explicit Runtime(Device, int threads, DType compute = DType::f32);

  ThreadPool pool;
  ArenaSet memory;
  Context context;

  // Runs allocate() and plan() dry, then allocates the memory and runs allocate() again for the
  // views to keep. With `only_plan` it stops before anything is allocated.
  template <class Allocate, class Plan>
  void set_up(Allocate&& allocate, Plan&& plan, bool only_plan = false) {
    context.scratch = &memory["scratch"];
    context.dry_run = true;
    allocate();
    plan();
    if (only_plan) return;
    memory.materialize(&services_of(context.device));
    context.scratch = &memory["scratch"];
    context.dry_run = false;
    allocate();
  }

  // `flat_size`: of the buffers, if they must be longer than the table asks for.
  Weights allocate_weights(const ParameterTable&, int64_t flat_size = 0);
};

}  // namespace kla
