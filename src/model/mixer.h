// A mixer moves information along time: the part of a layer that differs between KLA, GDN and their
// kin. One object per layer; it knows its parameters and remembers the views of its last forward
// for backward.
#pragma once

#include <memory>
#include <string>

#include "config/config.h"
#include "model/parameters.h"

namespace kla {

// Which tokens a call is about. M = B*T.
struct Sequence {
  int64_t B = 0, T = 0;
  View reset;  // [B,T] u8, optional: 1 where a document starts and nothing of the past may be used
};

// What one layer carries from call to call when a sequence is fed piece by piece.
struct LayerState {
  View S;          // [B,H,V,K] acc
  View conv_tail;  // [B,3,2*H*K+H*V] acc
  View position;   // [B] i64
};

class Mixer {
 public:
  virtual ~Mixer() = default;

  // y = residual + mixer(x), from an empty state. What backward reads is allocated from `keep`.
  //   x [M,D] compute, residual and y [M,D] acc (may be the same memory). An empty y means:
  //   recompute only what backward reads.
  virtual void forward(Context&, Arena& keep, const Weights&, const Sequence&, View x,
                       View residual, View y) = 0;

  // Backward of the last forward. dy [M,D] compute; dx [M,D] compute, overwritten; parameter
  // gradients are added to `gradients` [flat_size] acc.
  virtual void backward(Context&, const Weights&, View gradients, const Sequence&, View x, View dy,
                        View dx) = 0;

  // The same forward continued from `state`, which is advanced; nothing is kept. T = 1 uses the
  // one-token recurrence: constant memory and time per token.
  virtual void forward_from(Context&, const Weights&, const Sequence&, View x, View residual,
                            View y, LayerState& state) = 0;
  virtual LayerState allocate_state(Context&, Arena&, int64_t B) const = 0;
};

// Declares the parameters of layer `prefix` (such as "model.layers.0.attn.") and returns its mixer.
std::unique_ptr<Mixer> make_mixer(const ModelConfig&, ParameterTable&, const std::string& prefix);

}  // namespace kla
