#include "tests/support/compare.h"

namespace kla::testing {

std::vector<Device> devices_under_test() {
  std::vector<Device> devices{Device::cpu};
  for (Device device : {Device::simt, Device::cuda})
    if (available(device)) devices.push_back(device);
  return devices;
}

}  // namespace kla::testing
