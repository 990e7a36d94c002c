// Parameters are declared once: name, shape, initialiser, kind. The flat buffers of weights,
// gradients and optimizer state, the weight-decay segments, the names in a checkpoint and the
// printed counts derive from this table. Names are those of flash-linear-attention's
// GatedDeltaNetForCausalLM where it has the tensor.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/context.h"
#include "kernels/ops.h"

namespace kla {

// How a tensor starts (PAPER_SPEC 1.2). Numbers come from the stream (seed, parameter name), so
// variants that share a tensor share its initial values.
struct Initializer {
  enum class Kind {
    constant,   // a
    uniform,    // U(-a, a)
    normal,     // N(0, a^2)
    log_decay,  // ln u, u ~ U(0, 16): A_log
    step_bias,  // inverse softplus of max(1e-4, exp(U(ln 0.001, ln 0.1))): dt_bias
  };
  Kind kind = Kind::constant;
  double a = 0;
};

struct ParameterSpec {
  std::string name;
  std::vector<int64_t> shape;  // 1 to 3 dimensions
  Initializer init;
  bool matrix =
      false;  // read in the compute type by matrix products; decayed under optim.decay: matrices
  bool trained = true;  // false: this mode gives it no gradient, the optimizer leaves it alone
  int64_t offset = 0;   // first element in the flat buffers, set by the table
  int64_t count = 0;    // elements, set by the table
};

class ParameterTable {
 public:
  // Appends a parameter directly behind the one before, so that matrices declared in a row form one
  // larger matrix (see fused()). `align` starts a new 64-byte line. Returns its index.
  int add(ParameterSpec spec, bool align = false);

  const std::vector<ParameterSpec>& specs() const { return specs_; }
  const ParameterSpec& operator[](int index) const { return specs_[static_cast<size_t>(index)]; }
  int64_t flat_size() const { return size_; }  // elements of a flat buffer, alignment gaps included
  int64_t count() const;                       // parameters
  View view(View flat, int index) const;       // the parameter inside a flat buffer
  View fused(View flat, int first,
             int last) const;  // [sum of rows, cols] of parameters first..last
  std::vector<AdamwSegment> segments(bool decay_all) const;  // for the optimizer

 private:
  std::vector<ParameterSpec> specs_;
  int64_t size_ = 0;
};

// The weights as ops read them: small tensors from the master copy, matrices in the compute type.
// On devices where both types are the same, both are the same buffer.
struct Weights {
  const ParameterTable* table = nullptr;
  View master;   // [flat_size] acc
  View compute;  // [flat_size] compute

  View matrix(int index) const { return table->view(compute, index); }
  View matrices(int first, int last) const { return table->fused(compute, first, last); }
  View second_copy() const { return compute.data == master.data ? View() : compute; }
  View small(int index) const { return index < 0 ? View() : table->view(master, index); }
};

// Fills `flat` (f32 or f64, in host memory) from the initialisers; gaps become zero.
void initialize(const ParameterTable& table, View flat, uint64_t seed);
// The same for weights on any device, with their compute copy.
void initialize(const Context&, const Weights&, uint64_t seed);
// Makes the compute copy what the master copy says, where they are two buffers.
void refresh_compute_copy(const Context&, const Weights&);

}  // namespace kla
