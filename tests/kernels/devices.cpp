#include "tests/support/compare.h"

namespace kla::testing {

std::vector<Device> devices_under_test() {
  return {Device::cpu};
}

}  // namespace kla::testing
