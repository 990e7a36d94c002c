// Op handles: an op is declared once with its typed arguments and holds one function pointer per
// device. kernels/<device>/<family>.cpp fills the slots at start-up with one KLA_OP line each; the
// compiler checks the signature; calling an empty slot is a readable error.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "core/context.h"

namespace kla {

class OpBase {
 public:
  const char* name() const { return name_; }
  virtual bool has(Device device) const = 0;
  static const std::vector<const OpBase*>& all();  // every declared op, for tests and `kla bench`

 protected:
  explicit OpBase(const char* name);
  ~OpBase() = default;
  [[noreturn]] void missing(Device device) const;

 private:
  const char* name_;
};

// Sees every call of an op and its arguments: `kla bench` times the ops of a real training step so.
struct OpObserver {
  virtual void begin(const OpBase&, const void* args) = 0;
  virtual void end() = 0;

 protected:
  ~OpObserver() = default;
};

template <class Args>
class Op final : public OpBase {
 public:
  using Function = void (*)(Context&, const Args&);
  explicit Op(const char* name) : OpBase(name) {}

  void operator()(Context& context, const Args& args) const {
    const Function function = slots_[static_cast<size_t>(context.device)];
    if (!function) missing(context.device);
    if (context.observer) context.observer->begin(*this, &args);
    function(context, args);
    if (context.observer) context.observer->end();
  }
  bool has(Device device) const override { return slots_[static_cast<size_t>(device)] != nullptr; }
  bool set(Device device, Function function) {
    slots_[static_cast<size_t>(device)] = function;
    return true;
  }

 private:
  std::array<Function, kDevices> slots_{};
};

}  // namespace kla

#define KLA_OP_JOIN2(a, b) a##b
#define KLA_OP_JOIN(a, b) KLA_OP_JOIN2(a, b)
// KLA_OP(rms_norm_forward, cpu, function): fills one slot before main() runs.
#define KLA_OP(op, device, function)                                      \
  [[maybe_unused]] static const bool KLA_OP_JOIN(registered_, __LINE__) = \
      ::kla::ops::op.set(::kla::Device::device, function)
