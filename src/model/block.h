// One layer of the skeleton (PAPER_SPEC 1.1):  x' = x + Mixer(RMSNorm(x)),  y = x' +
// SwiGLU(RMSNorm(x')).
#pragma once

#include <memory>

#include "model/mixer.h"

namespace kla {

// What backward computes again instead of keeping: nothing, the inside of the mixer, or the whole
// block but its input. Changes memory and time, not one bit of the result.
enum class Recompute { none, mixer, block };
Recompute parse_recompute(const std::string& name);

// The gradient of the residual stream, and the copy of it that matrix products read; one buffer
// where both types are the same.
struct ResidualGradient {
  View acc;   // [M,D] acc
  View copy;  // [M,D] compute

  static ResidualGradient allocate(const Context&, Arena&, int64_t M, int64_t D);
  View second_output() const { return copy.dtype == acc.dtype ? View() : copy; }
};

class Block {
 public:
  Block(const ModelConfig&, ParameterTable&, const std::string& prefix, Recompute);

  // y = block(x); x and y [M,D] acc, two buffers. `keep` holds what backward needs.
  void forward(Context&, Arena& keep, const Weights&, const Sequence&, View x, View y);

  // Backward of the last forward. On entry dx is the gradient of y, on return that of x.
  void backward(Context&, const Weights&, View gradients, const Sequence&,
                const ResidualGradient& dx);

  // x <- block(x), continued from `state`.
  void forward_from(Context&, const Weights&, const Sequence&, View x, LayerState& state);

  LayerState allocate_state(Context&, Arena&, int64_t B) const;

 private:
  struct Activations {
    View normed1, rstd1;  // [M,D] compute, [M] acc: RMSNorm(x)
    View middle;          // [M,D] acc: x'
    View normed2, rstd2;  // [M,D] compute, [M] acc: RMSNorm(x')
    View gate_up;         // [M,2F] compute: w1 x | w2 x
    View hidden;          // [M,F] compute: silu(gate) o up
  };
  Activations allocate(Context&, Arena&, int64_t M) const;
  void norm(Context&, const Weights&, int weight, View x, View y, View rstd) const;
  void run(Context&, Arena& keep, Arena& keep_mixer, const Weights&, const Sequence&, View y);
  void gate(Context&, const Weights&, const Activations&) const;

  int64_t D_, F_;
  double norm_eps_;
  Recompute recompute_;
  int norm1_, norm2_, gate_proj_, up_proj_, down_proj_;
  std::unique_ptr<Mixer> mixer_;
  View input_;  // x of the last forward
  Activations saved_{};
};

}  // namespace kla
