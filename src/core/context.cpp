#include "core/context.h"

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

}  // namespace kla
