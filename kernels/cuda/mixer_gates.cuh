// The scalars of mixer_prep, in f32: step size and log-decay of one head and token, with their
// derivatives (kernels/README.md, "Mixer prep").
#pragma once

#include "kernels/cuda/quad.cuh"
#include "kernels/ops.h"

namespace kla::KLA_BACKEND {

// [B,T,H], columns, in the compute type or in f32.
struct LogitColumns {
  void* data = nullptr;
  int64_t stride = 0;
  bool is_bf16 = false;

  LogitColumns() = default;
  explicit LogitColumns(const View& view)
      : data(view.data), stride(view.stride), is_bf16(view.dtype == DType::bf16) {
    KLA_CHECK(view.empty() || is_bf16 || view.dtype == DType::f32, view.describe());
  }
  __device__ float load(int64_t row, int h) const {
    if (!data) return 0;
    if (is_bf16) return to_float(static_cast<const bfloat16*>(data)[row * stride + h]);
    return static_cast<const float*>(data)[row * stride + h];
  }
  __device__ void store(int64_t row, int h, float value) const {
    if (!data) return;
    if (is_bf16)
      static_cast<bfloat16*>(data)[row * stride + h] = from_float<bfloat16>(value);
    else
      static_cast<float*>(data)[row * stride + h] = value;
  }
};

// The small parameters and options as the kernels take them; null where a mode has none.
struct GateArguments {
  const float *b_bias, *a_log, *a_bias, *theta;
  int theta_stride;  // 0: one scalar for all heads
  int rule;
  SeqFactor factor;
  DecayGate decay;
  QueryMap query;
  KeyMap key;
  ValueMap value;
  float eps;

  GateArguments(const MixerPrepParameters& w, const MixerOptions& options)
      : b_bias(pointer<float>(w.b_bias)),
        a_log(pointer<float>(w.a_log)),
        a_bias(pointer<float>(w.a_bias)),
        theta(pointer<float>(w.theta)),
        theta_stride(rule_info(options.rule).scalar == LearnedScalar::per_head),
        rule(options.rule),
        factor(rule_info(rule).own_schedule ? SeqFactor::none : options.factor),
        decay(options.decay),
        query(rule_info(rule).query),
        key(rule_info(rule).key),
        value(rule_info(rule).value),
        eps(static_cast<float>(options.eps)) {}

  __device__ bool silu_on_keys() const { return key != KeyMap::softmax; }
};

__device__ inline float sigmoid(float x) {
  const float e = expf(-fabsf(x));
  return (x >= 0 ? 1.0f : e) / (1 + e);
}
__device__ inline float softplus(float x) {
  return fmaxf(x, 0) + log1pf(expf(-fabsf(x)));
}

struct StepOfRule {
  const StepInput<float>& x;
  SeqFactor factor;
  template <class Rule>
  KLA_HD StepValue<float> operator()(Rule) const {
    return write_gain<Rule>(x, factor);
  }
};

struct HeadGates {
  float b_bias, a_bias, decay_rate, scalar;

  __device__ HeadGates(const GateArguments& p, int h)
      : b_bias(p.b_bias ? p.b_bias[h] : 0),
        a_bias(p.a_bias ? p.a_bias[h] : 0),
        decay_rate(p.decay == DecayGate::dual_mamba ? expf(p.a_log[h]) : 0),
        scalar(p.theta ? softplus(p.theta[p.theta_stride * h]) : 0) {}
};

// 1 - eta is computed as sigmoid(-b): near eta = 1 a difference would lose its digits.
struct TokenStep {
  float b, eta, kept;  // logit with its bias; eta = sigmoid(b); 1 - eta
  StepValue<float> gain;

  __device__ TokenStep(const GateArguments& p, const HeadGates& head, float logit, float n, float t)
      : b(logit + head.b_bias) {
    const float e = expf(-fabsf(b)), r = 1 / (1 + e);  // sigmoid(b) and sigmoid(-b)
    eta = b >= 0 ? r : e * r;
    kept = b >= 0 ? e * r : r;
    const StepInput<float> x{eta, n, p.eps, t, head.scalar};
    gain = visit_rule(p.rule, StepOfRule{x, p.factor});
  }
};

struct Decay {
  float g;         // log-decay, <= 0
  float d_a, d_b;  // derivatives by the two logits
};

__device__ inline Decay log_decay(const GateArguments& p, const HeadGates& head, float a,
                                  const TokenStep& step) {
  const float z = a + head.a_bias;
  switch (p.decay) {
    case DecayGate::dual_mamba:
      return {-head.decay_rate * softplus(z), -head.decay_rate * sigmoid(z), 0};
    case DecayGate::dual_logsigmoid:
      return {-softplus(-z) / 16, sigmoid(-z) / 16, 0};
    case DecayGate::single: {  // ln clamp(1 - eta, 1e-6, 1);  d ln(1 - eta) / db = -eta
      const bool clamped = step.kept < 1e-6f;
      return {clamped ? -13.815510558f : -softplus(step.b), 0, clamped ? 0 : -step.eta};
    }
  }
  return {};
}

}  // namespace kla::KLA_BACKEND
