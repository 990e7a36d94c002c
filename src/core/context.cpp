#include "core/context.h"

#include <algorithm>
#include <cstring>

#include "core/device.h"
#include "core/error.h"

namespace kla {

const char* name_of(Device device) {
  switch (device) {
    case Device::reference:
      return "reference";
    case Device::cpu:
      return "cpu";
    case Device::cuda:
      return "cuda";
    case Device::simt:
      return "simt";
  }
  return "?";
}

void zero_fill(const Context& context, View dense) {
  KLA_CHECK(dense.dense(), dense.describe());
  if (context.dry_run) return;
  DeviceServices& services = services_of(context.device);
  if (!services.host_memory()) return services.fill(dense.data, 0, dense.bytes());
  constexpr int64_t kBlock = 1 << 20;  // bytes a task
  const int64_t bytes = dense.bytes();
  context.parallel((bytes + kBlock - 1) / kBlock, [&](int64_t block, int) {
    const int64_t first = block * kBlock;
    std::memset(static_cast<char*>(dense.data) + first, 0,
                static_cast<size_t>(std::min(kBlock, bytes - first)));
  });
}

}  // namespace kla
