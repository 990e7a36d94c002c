// Runtime: where a model runs: the device, its number types, the threads and the memory.
#pragma once

#include "config/config.h"
#include "core/context.h"
#include "core/memory.h"
#include "model/parameters.h"

namespace kla {

struct Runtime {
  explicit Runtime(const DeviceConfig&);  // Error{usage} for a device this build does not have
  explicit Runtime(Device, int threads);

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
    memory.materialize();
    context.scratch = &memory["scratch"];
    context.dry_run = false;
    allocate();
  }

  Weights allocate_weights(const ParameterTable&);
};

}  // namespace kla
