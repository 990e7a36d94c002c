#include "core/op.h"

#include "core/error.h"

namespace kla {
namespace {

std::vector<const OpBase*>& declared_ops() {
  static std::vector<const OpBase*> ops;
  return ops;
}

}  // namespace

OpBase::OpBase(const char* name) : name_(name) {
  declared_ops().push_back(this);
}

const std::vector<const OpBase*>& OpBase::all() {
  return declared_ops();
}

void OpBase::missing(Device device) const {
  throw Error(Exit::internal,
              std::string("op '") + name_ + "' has no " + name_of(device) + " implementation",
              "choose another device.backend");
}

}  // namespace kla
