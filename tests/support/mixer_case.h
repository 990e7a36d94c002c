// A whole mixer without its projections, as the model runs it: mixer_prep, delta scan and
// gated_rms_norm, forward and backward, on any device. Names of inputs and results are those of the
// mixer fixtures (tools/oracle/write_fixtures.py).
#pragma once

#include <algorithm>

#include "tests/support/delta_program.h"

namespace kla::testing {

struct MixerCase {
  DeltaShape shape;
  MixerOptions options;
  // By name: q, k [B,T,H*K]; v, gate, dy [B,T,H*V]; a, b [B,T,H]; q_conv, k_conv, v_conv;
  // b_bias, a_log, a_bias, theta, norm_weight; S_initial, dS_final [B,H,V,K]; conv_tail;
  // position [B]; reset [B,T]. What is absent is not given to the ops.
  std::map<std::string, Values> inputs;

  bool has(const std::string& name) const { return inputs.contains(name); }
  const Values& operator[](const std::string& name) const { return inputs.at(name); }
  int64_t channels() const { return shape.H * (2 * shape.K + shape.V); }  // of the convolutions
};

inline DecayGate decay_named(const std::string& name) {
  if (name == "single") return DecayGate::single;
  return name == "dual_mamba" ? DecayGate::dual_mamba : DecayGate::dual_logsigmoid;
}

inline SeqFactor factor_named(const std::string& name) {
  if (name == "none") return SeqFactor::none;
  if (name == "inv_t") return SeqFactor::inv_t;
  return name == "inv_sqrt_t" ? SeqFactor::inv_sqrt_t : SeqFactor::inv_log_t;
}

inline MixerCase mixer_case(const Fixture& f) {
  MixerCase c;
  c.shape = {f.number("B"), f.number("T"), f.number("H"), f.number("K"), f.number("V")};
  c.options = {.rule = find_rule(f.option("rule")),
               .factor = factor_named(f.option("factor")),
               .decay = decay_named(f.option("decay"))};
  for (const auto& [name, tensor] : f.inputs) c.inputs[name] = tensor.values;
  if (c.has("reset"))
    for (double& x : c.inputs["reset"]) x = x > 0;
  return c;
}

struct MixerDraw {
  int rule = find_rule("kla");
  DecayGate decay = DecayGate::dual_mamba;
  SeqFactor factor = SeqFactor::none;
  double key_scale = 1.5;
  bool strong = false;   // log-decay of some tokens down to about -20
  bool carried = false;  // state, convolution tail and position from before
};

// The range of keys, at most `widest`, in which the write gain of a rule without a bound stays
// under 2.
inline double key_range(int rule, int64_t K, double widest) {
  if (rule_info(rule).stable()) return widest;
  const auto gain = [&](double range) {
    const StepInput<double> x{.eta = 1,
                              .n = static_cast<double>(K) * range * range,
                              .eps = 1e-6,
                              .t = 1,
                              .scalar = std::log(2)};
    return visit_rule(rule, [&](auto r) { return decltype(r)::step(x).beta_hat; });
  };
  double range = widest;
  for (int i = 0; i < 40 && gain(range) > 2; ++i) range /= 1.25;
  return range;
}

inline MixerCase draw_mixer(const DeltaShape& s, const MixerDraw& draw) {
  MixerCase c{s, {.rule = draw.rule, .factor = draw.factor, .decay = draw.decay}, {}};
  const RuleInfo& rule = rule_info(draw.rule);
  const int64_t M = s.B * s.T, HK = s.H * s.K, HV = s.H * s.V;
  const auto add = [&](const std::string& name, int64_t count, double low, double high) {
    c.inputs[name] = uniform("mixer/" + name, count, low, high);
  };
  const double keys = key_range(draw.rule, s.K, draw.key_scale);
  for (const char* name : {"q", "k"}) add(name, M * HK, -keys, keys);
  for (const char* name : {"v", "gate", "dy"}) add(name, M * HV, -1.5, 1.5);
  add("a", M * s.H, draw.strong ? -14 : -2, draw.strong ? 3 : 2);
  add("b", M * s.H, -2, 2);
  for (const char* name : {"q_conv", "k_conv"}) add(name, HK * 4, -1, 1);
  add("v_conv", HV * 4, -1, 1);
  add("b_bias", s.H, -1, 1);
  add("norm_weight", s.V, 0.5, 1.5);
  if (draw.decay != DecayGate::single) add("a_bias", s.H, -0.5, 0.5);
  if (draw.decay == DecayGate::dual_mamba)
    add("a_log", s.H, draw.strong ? 1.5 : -3, draw.strong ? 2.1 : -1);
  if (rule.scalar != LearnedScalar::none)
    add("theta", rule.scalar == LearnedScalar::per_head ? s.H : 1, 0, 0.5);
  add("dS_final", s.B * HV * s.K, -1, 1);
  if (draw.carried) {
    add("S_initial", s.B * HV * s.K, -1, 1);
    add("conv_tail", s.B * 3 * c.channels(), -keys, keys);
    c.inputs["position"] = integers("mixer/position", s.B, 1, 50);
  }
  return c;
}

inline View optional_acc(Lab& lab, const MixerCase& c, const std::string& name, Dims dims) {
  return c.has(name) ? lab.acc(c[name], dims) : View();
}

inline MixerInputs mixer_inputs(Lab& lab, const MixerCase& c) {
  const auto& [B, T, H, K, V, C] = c.shape;
  MixerInputs in;
  in.q = lab.columns(c["q"], {B, T, H * K});
  in.k = lab.columns(c["k"], {B, T, H * K});
  in.v = lab.columns(c["v"], {B, T, H * V});
  in.a = lab.columns(c["a"], {B, T, H});
  in.b = lab.columns(c["b"], {B, T, H});
  if (c.has("reset")) in.reset = lab.typed(DType::u8, c["reset"], {B, T});
  in.conv_tail = optional_acc(lab, c, "conv_tail", {B, 3, c.channels()});
  if (c.has("position")) in.position = lab.typed(DType::i64, c["position"], {B});
  return in;
}

inline int64_t theta_count(const MixerCase& c) {
  return c.has("theta") ? static_cast<int64_t>(c["theta"].size()) : 0;
}

inline MixerPrepParameters mixer_parameters(Lab& lab, const MixerCase& c) {
  const auto& [B, T, H, K, V, C] = c.shape;
  return {.q_conv = lab.acc(c["q_conv"], {H * K, 4}),
          .k_conv = lab.acc(c["k_conv"], {H * K, 4}),
          .v_conv = lab.acc(c["v_conv"], {H * V, 4}),
          .b_bias = lab.acc(c["b_bias"], {H}),
          .a_log = optional_acc(lab, c, "a_log", {H}),
          .a_bias = optional_acc(lab, c, "a_bias", {H}),
          .theta = optional_acc(lab, c, "theta", {theta_count(c)})};
}

// Accumulators beside every parameter that is given.
inline MixerPrepParameters mixer_gradients(Lab& lab, const MixerCase& c) {
  const auto& [B, T, H, K, V, C] = c.shape;
  MixerPrepParameters dw;
  dw.q_conv = lab.accumulator({H * K, 4});
  dw.k_conv = lab.accumulator({H * K, 4});
  dw.v_conv = lab.accumulator({H * V, 4});
  dw.b_bias = lab.accumulator({H});
  if (c.has("a_log")) dw.a_log = lab.accumulator({H});
  if (c.has("a_bias")) dw.a_bias = lab.accumulator({H});
  if (c.has("theta")) dw.theta = lab.accumulator({theta_count(c)});
  return dw;
}

inline MixerPrepForward prep_forward(Lab& lab, const MixerCase& c) {
  const auto& [B, T, H, K, V, C] = c.shape;
  MixerPrepForward prep{.q_hat = lab.compute({B, T, H, K}),
                        .k_hat = lab.compute({B, T, H, K}),
                        .v_hat = lab.compute({B, T, H, V}),
                        .beta = lab.acc({B, T, H}),
                        .g = lab.acc({B, T, H}),
                        .T_zero = lab.compute({B, c.shape.NC(), H, C, C}),
                        .conv_tail_out = lab.acc({B, 3, c.channels()}),
                        .position_out = lab.typed(DType::i64, {B}),
                        .in = mixer_inputs(lab, c),
                        .w = mixer_parameters(lab, c),
                        .options = c.options};
  lab(ops::mixer_prep_forward, prep);
  return prep;
}

// Runs the backward of prep and keeps d.q ... d.theta.
inline void prep_backward(Lab& lab, const MixerCase& c, const MixerPrepForward& prep,
                          const std::map<std::string, View>& upstream) {
  const auto& [B, T, H, K, V, C] = c.shape;
  const MixerPrepBackward back{.dq = lab.columns({B, T, H * K}),
                               .dk = lab.columns({B, T, H * K}),
                               .dv = lab.columns({B, T, H * V}),
                               .da = lab.columns({B, T, H}),
                               .db = lab.columns({B, T, H}),
                               .dw = mixer_gradients(lab, c),
                               .dq_hat = upstream.at("dq"),
                               .dk_hat = upstream.at("dk"),
                               .dv_hat = upstream.at("dv"),
                               .dbeta = upstream.at("dbeta"),
                               .dg = upstream.at("dg"),
                               .in = prep.in,
                               .w = prep.w,
                               .options = c.options};
  lab(ops::mixer_prep_backward, back);
  const std::map<std::string, View> gradients{{"q", back.dq},
                                              {"k", back.dk},
                                              {"v", back.dv},
                                              {"a", back.da},
                                              {"b", back.db},
                                              {"q_conv", back.dw.q_conv},
                                              {"k_conv", back.dw.k_conv},
                                              {"v_conv", back.dw.v_conv},
                                              {"b_bias", back.dw.b_bias},
                                              {"a_log", back.dw.a_log},
                                              {"a_bias", back.dw.a_bias},
                                              {"theta", back.dw.theta}};
  for (const auto& [name, view] : gradients)
    if (!view.empty()) lab.keep("d." + name, view);
}

inline void run_mixer_backward(Lab& lab, const MixerCase& c, const MixerPrepForward& prep,
                               const DeltaScanForward& scan, const GatedRmsNormForward& norm) {
  const auto& [B, T, H, K, V, C] = c.shape;
  const GatedRmsNormBackward back{.dx = lab.compute({B * T, H * V}),
                                  .dgate = lab.columns({B * T, H * V}),
                                  .dw = lab.accumulator({V}),
                                  .dy = lab.compute(c["dy"], {B * T, H * V}),
                                  .x = norm.x,
                                  .gate = norm.gate,
                                  .w = norm.w,
                                  .rstd = norm.rstd};
  lab(ops::gated_rms_norm_backward, back);
  lab.keep("d.gate", back.dgate);
  lab.keep("d.norm_weight", back.dw);
  const View dS_final = optional_acc(lab, c, "dS_final", {B, H, V, K});
  const auto gradients = run_scan_backward(lab, c.shape, scan.in, scan.S_enter,
                                           back.dx.reshape({B, T, H, V}), dS_final);
  if (c.has("S_initial")) lab.keep("d.S_initial", gradients.at("dS_initial"));
  prep_backward(lab, c, prep, gradients);
}

// Keeps o, y, S_final, conv_tail, position and, with `backward`, every gradient as d.NAME.
inline void run_mixer(Lab& lab, const MixerCase& c, bool backward = true) {
  const auto& [B, T, H, K, V, C] = c.shape;
  const MixerPrepForward prep = prep_forward(lab, c);
  const DeltaScanForward scan{.o = lab.compute({B, T, H, V}),
                              .S_enter = lab.compute({B, c.shape.NC(), H, V, K}),
                              .S_final = lab.acc({B, H, V, K}),
                              .S_initial = optional_acc(lab, c, "S_initial", {B, H, V, K}),
                              .in = {.q = prep.q_hat,
                                     .k = prep.k_hat,
                                     .v = prep.v_hat,
                                     .beta = prep.beta,
                                     .g = prep.g,
                                     .T_zero = prep.T_zero,
                                     .reset = prep.in.reset,
                                     .scale = 1 / std::sqrt(static_cast<double>(K))}};
  lab(ops::delta_scan_forward, scan);
  const GatedRmsNormForward norm{.y = lab.compute({B * T, H * V}),
                                 .rstd = lab.acc({B * T, H}),
                                 .x = scan.o.reshape({B * T, H * V}),
                                 .gate = lab.columns(c["gate"], {B * T, H * V}),
                                 .w = lab.acc(c["norm_weight"], {V})};
  lab(ops::gated_rms_norm_forward, norm);
  lab.keep("o", scan.o);
  lab.keep("y", norm.y);
  lab.keep("S_final", scan.S_final);
  lab.keep("conv_tail", prep.conv_tail_out);
  lab.keep("position", prep.position_out);
  if (backward) run_mixer_backward(lab, c, prep, scan, norm);
}

// Tokens [first, first + count) of a case, going on from the results of the tokens before.
inline MixerCase token_range(const MixerCase& c, int64_t first, int64_t count,
                             const Results* before = nullptr) {
  MixerCase part = c;
  part.shape.T = count;
  const auto [B, T, H, K, V, C] = c.shape;
  for (const char* name : {"q", "k", "v", "a", "b", "gate", "dy", "reset"}) {
    if (!c.has(name)) continue;
    const Values& whole = c[name];
    const int64_t width = static_cast<int64_t>(whole.size()) / (B * T);
    Values& cut = part.inputs[name];
    cut.clear();
    for (int64_t b = 0; b < B; ++b) {
      const auto start = whole.begin() + (b * T + first) * width;
      cut.insert(cut.end(), start, start + count * width);
    }
  }
  if (before) {
    part.inputs["S_initial"] = before->at("S_final");
    for (const char* name : {"conv_tail", "position"}) part.inputs[name] = before->at(name);
  }
  return part;
}

}  // namespace kla::testing
