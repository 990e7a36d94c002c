// The gated-delta mixer (PAPER_SPEC 2): projections, short convolutions, the gated delta rule with
// any step-size rule, gated per-head norm, output projection. KLA, GDN, Longhorn, ... differ in
// `options` only.
#pragma once

#include "model/mixer.h"

namespace kla {

class GatedDelta final : public Mixer {
 public:
  GatedDelta(const ModelConfig&, ParameterTable&, const std::string& prefix);

  void forward(Context&, Arena& keep, const Weights&, const Sequence&, View x, View residual,
               View y) override;
  void backward(Context&, const Weights&, View gradients, const Sequence&, View x, View dy,
                View dx) override;
  void forward_from(Context&, const Weights&, const Sequence&, View x, View residual, View y,
                    LayerState& state) override;
  LayerState allocate_state(Context&, Arena&, int64_t B) const override;

 private:
  // Everything between the projections and the output projection, in the order it is made.
  struct Activations {
    View qkvg;     // [M,2HK+2HV] compute: q | k | v | gate
    View ab;       // [M,2H] acc: decay logit | step logit
    View q, k;     // [B,T,H,K] compute, normalised
    View v;        // [B,T,H,V] compute
    View beta, g;  // [B,T,H] acc
    View T_zero;   // [B,NC,H,C,C] compute
    View S_enter;  // [B,NC,H,V,K] compute
    View o;        // [B,T,H,V] compute
    View rstd;     // [M,H] acc
    View y;        // [M,HV] compute: input of the output projection
  };
  struct Indices {  // into the parameter table; -1: does not exist in this mode
    int q_proj, k_proj, v_proj, g_proj, a_proj, b_proj,
        b_bias = -1, a_log = -1, a_bias = -1, theta = -1, q_conv, k_conv, v_conv, o_norm, o_proj;
  };

  Activations allocate(Context&, Arena&, const Sequence&, bool for_backward) const;
  // [M,2HK+2HV+2H] compute, columns: q | k | v | gate | a | b, as their weights lie.
  View allocate_projection_gradients(Context&, int64_t M) const;
  void project(Context&, const Weights&, View x, const Activations&) const;
  MixerInputs inputs(const Sequence&, const Activations&) const;
  MixerPrepParameters small_parameters(const ParameterTable&, View flat) const;
  DeltaInputs delta_inputs(const Sequence&, const Activations&) const;
  void normalise_and_project(Context&, const Weights&, const Activations&, View residual,
                             View y) const;
  View gate_of(View projections) const {
    return projections.columns(2 * H_ * K_ + H_ * V_, H_ * V_);
  }

  int64_t D_, H_, K_, V_;
  double norm_eps_;
  MixerOptions options_;
  Indices p_{};
  Activations saved_{};
};

}  // namespace kla
