#include "model/gated_delta.h"

#include <cmath>

#include "core/error.h"

namespace kla {
namespace {

MixerOptions options_of(const ModelConfig& c) {
  const StepSizeConfig& s = c.step_size;
  MixerOptions o;
  o.rule = find_rule(s.rule);
  o.eps = s.eps;
  if (o.rule < 0)
    throw Error(Exit::usage, "model.step_size.rule: unknown rule '" + s.rule + "'",
                "kernels/step_rules.h lists the rules");
  o.factor = s.seq_factor == "inv_t"        ? SeqFactor::inv_t
             : s.seq_factor == "inv_sqrt_t" ? SeqFactor::inv_sqrt_t
             : s.seq_factor == "inv_log_t"  ? SeqFactor::inv_log_t
                                            : SeqFactor::none;
  o.decay = s.gate == "single"               ? DecayGate::single
            : c.decay_gate == "logsigmoid16" ? DecayGate::dual_logsigmoid
                                             : DecayGate::dual_mamba;
  return o;
}

}  // namespace

GatedDelta::GatedDelta(const ModelConfig& c, ParameterTable& table, const std::string& prefix)
    : D_(c.hidden_size),
      H_(c.num_heads),
      K_(c.key_head_dim),
      V_(c.value_head_dim),
      norm_eps_(c.norm_eps),
      options_(options_of(c)) {
  using Kind = Initializer::Kind;
  const RuleInfo& rule = rule_info(options_.rule);
  const bool dual = options_.decay != DecayGate::single;
  const bool step_trained = rule.uses_eta || !dual;  // the single gate reads the step too
  const Initializer linear{Kind::uniform, 1 / std::sqrt(static_cast<double>(D_))};
  const Initializer conv{Kind::uniform, 0.5}, zero{Kind::constant, 0}, one{Kind::constant, 1};
  auto matrix = [&](const char* name, int64_t rows, int64_t cols, Initializer init, bool align,
                    bool trained = true) {
    return table.add({prefix + name, {rows, cols}, init, true, trained}, align);
  };
  auto small = [&](const char* name, std::vector<int64_t> shape, Initializer init,
                   bool trained = true) {
    return table.add({prefix + name, std::move(shape), init, false, trained});
  };

  p_.q_proj = matrix("q_proj.weight", H_ * K_, D_, linear, true);
  p_.k_proj = matrix("k_proj.weight", H_ * K_, D_, linear, false);
  p_.v_proj = matrix("v_proj.weight", H_ * V_, D_, linear, false);
  p_.g_proj = matrix("g_proj.weight", H_ * V_, D_, linear, false);
  p_.a_proj = matrix("a_proj.weight", H_, D_, linear, false, dual);
  p_.b_proj = matrix("b_proj.weight", H_, D_, linear, false, step_trained);
  const double fan_in = static_cast<double>(H_ * V_);
  p_.o_proj = matrix("o_proj.weight", D_, H_ * V_, {Kind::uniform, 1 / std::sqrt(fan_in)}, true);
  if (c.beta_bias) p_.b_bias = small("b_proj.bias", {H_}, zero, step_trained);
  if (c.decay_gate == "mamba") {
    p_.a_log = small("A_log", {H_}, {Kind::log_decay, 0}, dual);
    p_.a_bias = small("dt_bias", {H_}, {Kind::step_bias, 0}, dual);
  } else {
    p_.a_bias = small("a_proj.bias", {H_}, zero, dual);
  }
  if (rule.scalar != LearnedScalar::none)
    p_.theta = small("learned_norm_logit", {rule.scalar == LearnedScalar::per_head ? H_ : 1},
                     {Kind::constant, std::log(std::expm1(c.step_size.learned_scalar_init))});
  p_.q_conv = small("q_conv1d.weight", {H_ * K_, 1, kConvWidth}, conv);
  p_.k_conv = small("k_conv1d.weight", {H_ * K_, 1, kConvWidth}, conv);
  p_.v_conv = small("v_conv1d.weight", {H_ * V_, 1, kConvWidth}, conv);
  p_.o_norm = small("o_norm.weight", {V_}, one);
}

void GatedDelta::forward(Context& ctx, Arena& keep, const Weights& w, const Sequence& seq, View x,
                         View residual, View y) {
  saved_ = allocate(ctx, keep, seq, true);
  project(ctx, w, x, saved_);
  ops::mixer_prep_forward(ctx, {.q_hat = saved_.q,
                                .k_hat = saved_.k,
                                .v_hat = saved_.v,
                                .beta = saved_.beta,
                                .g = saved_.g,
                                .T_zero = saved_.T_zero,
                                .conv_tail_out = {},
                                .position_out = {},
                                .in = inputs(seq, saved_),
                                .w = small_parameters(*w.table, w.master),
                                .options = options_});
  ops::delta_scan_forward(ctx, {.o = saved_.o,
                                .S_enter = saved_.S_enter,
                                .S_final = {},
                                .S_initial = {},
                                .in = delta_inputs(seq, saved_)});
  normalise_and_project(ctx, w, saved_, residual, y);
}

void GatedDelta::backward(Context& ctx, const Weights& w, View gradients, const Sequence& seq,
                          View x, View dy, View dx) {
  const ParameterTable& table = *w.table;
  const int64_t B = seq.B, T = seq.T, M = B * T;
  const DType compute = ctx.compute, acc = ctx.accumulate;
  Arena& scratch = *ctx.scratch;
  ArenaScope scope(scratch);

  // Output projection and gated norm.
  View dprojections = allocate_projection_gradients(ctx, M);
  View dnormed = scratch.allocate(compute, {M, H_ * V_});
  View dout = scratch.allocate(compute, {B, T, H_, V_});
  ops::matmul_backward_weight(ctx,
                              {.dw = table.view(gradients, p_.o_proj), .dy = dy, .x = saved_.y});
  ops::matmul_backward_input(ctx, {.dx = dnormed, .dy = dy, .w = w.matrix(p_.o_proj)});
  ops::gated_rms_norm_backward(ctx, {.dx = dout.reshape({M, H_ * V_}),
                                     .dgate = gate_of(dprojections),
                                     .dw = table.view(gradients, p_.o_norm),
                                     .dy = dnormed,
                                     .x = saved_.o.reshape({M, H_ * V_}),
                                     .gate = gate_of(saved_.qkvg),
                                     .w = w.small(p_.o_norm),
                                     .rstd = saved_.rstd});

  // Delta rule: the state's gradient in a reverse scan, all else parallel over chunks.
  View dS = scratch.allocate(compute, {B, chunk_count(T), H_, V_, K_});
  View dq = scratch.allocate(compute, {B, T, H_, K_});
  View dk = scratch.allocate(compute, {B, T, H_, K_});
  View dv = scratch.allocate(compute, {B, T, H_, V_});
  View dbeta = scratch.allocate(acc, {B, T, H_});
  View dg = scratch.allocate(acc, {B, T, H_});
  const DeltaInputs in = delta_inputs(seq, saved_);
  ops::delta_reverse_scan(
      ctx, {.dS_leave = dS, .dS_initial = {}, .dS_final = {}, .dout = dout, .in = in});
  ops::delta_chunk_backward(ctx, {.dq = dq,
                                  .dk = dk,
                                  .dv = dv,
                                  .dbeta = dbeta,
                                  .dg = dg,
                                  .dout = dout,
                                  .S_enter = saved_.S_enter,
                                  .dS_leave = dS,
                                  .in = in});

  // Back through norms, gates and convolutions, then the input projections.
  const auto part = [&](int64_t first, int64_t count) {
    return dprojections.columns(first, count).reshape({B, T, count});
  };
  const int64_t logits = 2 * H_ * (K_ + V_);
  ops::mixer_prep_backward(ctx, {.dq = part(0, H_ * K_),
                                 .dk = part(H_ * K_, H_ * K_),
                                 .dv = part(2 * H_ * K_, H_ * V_),
                                 .da = part(logits, H_),
                                 .db = part(logits + H_, H_),
                                 .dw = small_parameters(table, gradients),
                                 .dq_hat = dq,
                                 .dk_hat = dk,
                                 .dv_hat = dv,
                                 .dbeta = dbeta,
                                 .dg = dg,
                                 .in = inputs(seq, saved_),
                                 .w = small_parameters(table, w.master),
                                 .options = options_});
  ops::matmul_backward_weight(
      ctx, {.dw = table.fused(gradients, p_.q_proj, p_.b_proj), .dy = dprojections, .x = x});
  ops::matmul_backward_input(ctx,
                             {.dx = dx, .dy = dprojections, .w = w.matrices(p_.q_proj, p_.b_proj)});
}

View GatedDelta::allocate_projection_gradients(Context& ctx, int64_t M) const {
  constexpr int64_t kLine = 64;  // elements: rows that begin at a line of memory
  const int64_t columns = 2 * H_ * (K_ + V_ + 1);
  View rows = ctx.scratch->allocate(ctx.compute, {M, (columns + kLine - 1) / kLine * kLine});
  return rows.columns(0, columns);
}

void GatedDelta::forward_from(Context& ctx, const Weights& w, const Sequence& seq, View x,
                              View residual, View y, LayerState& state) {
  ArenaScope scope(*ctx.scratch);
  Activations act = allocate(ctx, *ctx.scratch, seq, false);
  const bool one_token = seq.T == 1;
  if (one_token) act.T_zero = View();
  MixerInputs in = inputs(seq, act);
  in.conv_tail = state.conv_tail;
  in.position = state.position;
  project(ctx, w, x, act);
  ops::mixer_prep_forward(ctx, {.q_hat = act.q,
                                .k_hat = act.k,
                                .v_hat = act.v,
                                .beta = act.beta,
                                .g = act.g,
                                .T_zero = act.T_zero,
                                .conv_tail_out = state.conv_tail,
                                .position_out = state.position,
                                .in = in,
                                .w = small_parameters(*w.table, w.master),
                                .options = options_});
  const DeltaInputs delta = delta_inputs(seq, act);
  if (one_token) {
    KLA_CHECK(seq.reset.empty(), "a one-token step continues its document");
    const int64_t B = seq.B;
    ops::delta_step(ctx, {.o = act.o.reshape({B, H_, V_}),
                          .S = state.S,
                          .q = act.q.reshape({B, H_, K_}),
                          .k = act.k.reshape({B, H_, K_}),
                          .v = act.v.reshape({B, H_, V_}),
                          .beta = act.beta.reshape({B, H_}),
                          .g = act.g.reshape({B, H_}),
                          .scale = delta.scale});
  } else {
    ops::delta_scan_forward(
        ctx, {.o = act.o, .S_enter = {}, .S_final = state.S, .S_initial = state.S, .in = delta});
  }
  normalise_and_project(ctx, w, act, residual, y);
}

LayerState GatedDelta::allocate_state(Context& ctx, Arena& arena, int64_t B) const {
  return {.S = arena.allocate(ctx.accumulate, {B, H_, V_, K_}),
          .conv_tail = arena.allocate(ctx.accumulate, {B, kConvTail, 2 * H_ * K_ + H_ * V_}),
          .position = arena.allocate(DType::i64, {B})};
}

GatedDelta::Activations GatedDelta::allocate(Context& ctx, Arena& arena, const Sequence& seq,
                                             bool for_backward) const {
  const int64_t B = seq.B, T = seq.T, M = B * T, NC = chunk_count(T);
  const DType compute = ctx.compute, acc = ctx.accumulate;
  return {.qkvg = arena.allocate(compute, {M, 2 * H_ * (K_ + V_)}),
          .ab = arena.allocate(acc, {M, 2 * H_}),
          .q = arena.allocate(compute, {B, T, H_, K_}),
          .k = arena.allocate(compute, {B, T, H_, K_}),
          .v = arena.allocate(compute, {B, T, H_, V_}),
          .beta = arena.allocate(acc, {B, T, H_}),
          .g = arena.allocate(acc, {B, T, H_}),
          .T_zero = arena.allocate(compute, {B, NC, H_, kChunk, kChunk}),
          .S_enter = for_backward ? arena.allocate(compute, {B, NC, H_, V_, K_}) : View(),
          .o = arena.allocate(compute, {B, T, H_, V_}),
          .rstd = arena.allocate(acc, {M, H_}),
          .y = arena.allocate(compute, {M, H_ * V_})};
}

void GatedDelta::project(Context& ctx, const Weights& w, View x, const Activations& act) const {
  ops::matmul_forward(
      ctx, {.y = act.qkvg, .x = x, .w = w.matrices(p_.q_proj, p_.g_proj), .residual = {}});
  ops::matmul_forward(ctx,
                      {.y = act.ab, .x = x, .w = w.matrices(p_.a_proj, p_.b_proj), .residual = {}});
}

MixerInputs GatedDelta::inputs(const Sequence& seq, const Activations& act) const {
  const int64_t B = seq.B, T = seq.T;
  return {.q = act.qkvg.columns(0, H_ * K_).reshape({B, T, H_ * K_}),
          .k = act.qkvg.columns(H_ * K_, H_ * K_).reshape({B, T, H_ * K_}),
          .v = act.qkvg.columns(2 * H_ * K_, H_ * V_).reshape({B, T, H_ * V_}),
          .a = act.ab.columns(0, H_).reshape({B, T, H_}),
          .b = act.ab.columns(H_, H_).reshape({B, T, H_}),
          .reset = seq.reset,
          .conv_tail = {},
          .position = {}};
}

// The views of the small parameters inside a flat buffer: the weights, or their gradients.
MixerPrepParameters GatedDelta::small_parameters(const ParameterTable& table, View flat) const {
  auto view = [&](int index) { return index < 0 ? View() : table.view(flat, index); };
  auto taps = [&](int index) {
    const View v = table.view(flat, index);
    return v.reshape({v.dim(0), kConvWidth});
  };
  return {.q_conv = taps(p_.q_conv),
          .k_conv = taps(p_.k_conv),
          .v_conv = taps(p_.v_conv),
          .b_bias = view(p_.b_bias),
          .a_log = view(p_.a_log),
          .a_bias = view(p_.a_bias),
          .theta = view(p_.theta)};
}

DeltaInputs GatedDelta::delta_inputs(const Sequence& seq, const Activations& act) const {
  return {.q = act.q,
          .k = act.k,
          .v = act.v,
          .beta = act.beta,
          .g = act.g,
          .T_zero = act.T_zero,
          .reset = seq.reset,
          .scale = 1 / std::sqrt(static_cast<double>(K_))};
}

void GatedDelta::normalise_and_project(Context& ctx, const Weights& w, const Activations& act,
                                       View residual, View y) const {
  const int64_t M = act.qkvg.rows();
  ops::gated_rms_norm_forward(ctx, {.y = act.y,
                                    .rstd = act.rstd,
                                    .x = act.o.reshape({M, H_ * V_}),
                                    .gate = gate_of(act.qkvg),
                                    .w = w.small(p_.o_norm),
                                    .eps = norm_eps_});
  if (!y.empty())
    ops::matmul_forward(ctx, {.y = y, .x = act.y, .w = w.matrix(p_.o_proj), .residual = residual});
}

}  // namespace kla
