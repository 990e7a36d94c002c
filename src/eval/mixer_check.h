// MixerCheck: the gated-delta mixers of a trained model, computed in three ways from the same
// inputs, the projections that the model's own forward pass makes of real text:
//   chunkwise  what that forward pass computed: mixer_prep and delta_scan on the model's device
//   recurrent  token by token on the same device, as decoding does: mixer_prep and delta_step
//   double     the reference, from the same rounded inputs and weights, chunkwise and by token
// and compared in the output o and the final state of each layer.
#pragma once

#include <cstdint>
#include <vector>

#include "eval/mixer_tap.h"
#include "model/language_model.h"
#include "model/runtime.h"

namespace kla {

// Relative RMS errors of one layer, of o or of the final state, whichever is larger.
struct LayerCheck {
  int64_t layer = 0;
  double chunkwise = 0;   // chunkwise against double
  double recurrent = 0;   // recurrent against double
  double between = 0;     // chunkwise against recurrent
  double definition = 0;  // in double, chunkwise against by token
};

// The bounds of DESIGN's tests for a device that computes in `compute`.
struct CheckBounds {
  double device;      // of chunkwise and recurrent
  double between;     // of between
  double definition;  // of definition
};
CheckBounds check_bounds(DType compute);

// The largest error in units of its bound: passed if it is at most 1. A NaN passes nothing.
double worst_ratio(const LayerCheck&, const CheckBounds&);

class MixerCheck {
 public:
  // For a text of `tokens` tokens. Allocates from runtime.memory["check"]; with plan() inside
  // Runtime::set_up this is the memory plan of the device; the reference takes memory of its own
  // while a layer is compared.
  MixerCheck(Runtime&, LanguageModel&, const Weights&, int64_t layers, int64_t tokens);

  void plan();

  // tokens [n] of one text from its start, n as given above; reset [n] or empty: 1 where a document
  // starts. One entry a layer.
  std::vector<LayerCheck> run(const std::vector<int32_t>& tokens,
                              const std::vector<uint8_t>& reset);

 private:
  void forward(bool resets);
  void compare(int64_t layer, const MixerPrepForward&, const DeltaScanForward&);

  Runtime& runtime_;
  LanguageModel& model_;
  const Weights& weights_;
  int64_t layers_, T_;
  RecurrentState state_;
  View tokens_, targets_, losses_;  // [T]
  View reset_;                      // [1,T]
  std::vector<uint8_t> resets_;     // of the text that runs
  std::vector<LayerCheck> found_;
};

}  // namespace kla
