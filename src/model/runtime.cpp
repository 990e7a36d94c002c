#include "model/runtime.h"

#include "core/error.h"

namespace kla {

Runtime::Runtime(const DeviceConfig& config)
    : Runtime(Device::cpu, static_cast<int>(config.threads)) {
  if (config.backend != "auto" && config.backend != "cpu")
    throw Error(Exit::usage, "device.backend: this build has no '" + config.backend + "' device",
                "choose auto or cpu");
}

Runtime::Runtime(Device device, int threads) : pool(threads) {
  context.device = device;
  context.compute = context.accumulate = device == Device::reference ? DType::f64 : DType::f32;
  context.pool = &pool;
}

// One buffer serves as master copy and compute copy while both have the same type.
Weights Runtime::allocate_weights(const ParameterTable& table) {
  KLA_CHECK(context.compute == context.accumulate, "a compute copy of the weights");
  const View flat = memory["weights"].allocate(context.accumulate, {table.flat_size()});
  return {&table, flat, flat};
}

}  // namespace kla
