#include "model/runtime.h"

#include <algorithm>

#include "core/error.h"

namespace kla {

Device choose_device(const DeviceConfig& config) {
  if (config.backend == "auto") return available(Device::cuda) ? Device::cuda : Device::cpu;
  for (Device device : {Device::cpu, Device::cuda, Device::simt})
    if (config.backend == name_of(device)) return device;
  throw Error(Exit::usage, "device.backend: unknown device '" + config.backend + "'",
              "choose auto, cpu, cuda or simt");
}

DType choose_compute_type(const DeviceConfig& config, Device device) {
  const bool accelerator = device == Device::cuda || device == Device::simt;
  if (config.dtype == "bf16" && !accelerator)
    throw Error(Exit::usage,
                std::string("device.dtype: the ") + name_of(device) + " device computes in f32",
                "choose auto or f32");
  if (config.dtype == "f32" || !accelerator) return DType::f32;
  return DType::bf16;
}

Runtime::Runtime(const DeviceConfig& config)
    : Runtime(choose_device(config), static_cast<int>(config.threads),
              choose_compute_type(config, choose_device(config))) {}

Runtime::Runtime(Device device, int threads, DType compute) : pool(threads) {
  services_of(device);  // throws if there is none
  context.device = device;
  context.compute = compute;
  context.accumulate = DType::f32;
  if (device == Device::reference) context.compute = context.accumulate = DType::f64;
  context.pool = &pool;
}

// One buffer serves as master copy and compute copy while both have the same type.
Weights Runtime::allocate_weights(const ParameterTable& table, int64_t flat_size) {
  const int64_t n = std::max(table.flat_size(), flat_size);
  const View master = memory["weights"].allocate(context.accumulate, {n});
  if (context.compute == context.accumulate) return {&table, master, master};
  return {&table, master, memory["weights"].allocate(context.compute, {n})};
}

}  // namespace kla
