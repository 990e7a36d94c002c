// The scalars of mixer_prep: one step size and one log-decay per token and head, with derivatives.
// There are few of them, so double costs nothing.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/ops.h"

namespace kla::cpu {

inline double sigmoid(double x) {
  return x >= 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x));
}
inline double softplus(double x) {
  return x > 20 ? x : std::log1p(std::exp(x));
}

// The parameters of one head.
struct HeadGates {
  MixerOptions options;
  double b_bias = 0, a_bias = 0, decay_rate = 0, scalar = 1;

  HeadGates(const MixerOptions& o, const MixerPrepParameters& w, int64_t h) : options(o) {
    const auto read = [](const View& view, int64_t i) {
      return view.empty() ? 0.0 : static_cast<double>(view.as<float>()[i]);
    };
    b_bias = read(w.b_bias, h);
    a_bias = read(w.a_bias, h);
    if (o.decay == DecayGate::dual_mamba) decay_rate = std::exp(read(w.a_log, h));
    if (!w.theta.empty()) scalar = softplus(read(w.theta, w.theta.size() == 1 ? 0 : h));
  }

  // beta-hat and its derivatives by eta, |k|^2 and the scalar; `t` is the position.
  StepValue<double> step(double eta, double n, double t) const {
    return visit_rule(options.rule, [&](auto rule) {
      return write_gain<decltype(rule)>(StepInput<double>{eta, n, options.eps, t, scalar},
                                        options.factor);
    });
  }

  struct Decay {
    double g, d_a, d_eta;  // value, derivatives by the decay logit and by eta
  };
  Decay decay(double a, double eta) const {
    const double z = a + a_bias;
    switch (options.decay) {
      case DecayGate::dual_mamba:
        return {-decay_rate * softplus(z), -decay_rate * sigmoid(z), 0};
      case DecayGate::dual_logsigmoid:
        return {-softplus(-z) / 16, sigmoid(-z) / 16, 0};
      case DecayGate::single: {
        const double kept = std::clamp(1 - eta, 1e-6, 1.0);
        return {std::log(kept), 0, kept == 1 - eta ? -1 / kept : 0};
      }
    }
    return {};
  }
};

}  // namespace kla::cpu
