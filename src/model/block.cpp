#include "model/block.h"

#include <cmath>

#include "core/error.h"

namespace kla {

Recompute parse_recompute(const std::string& name) {
  if (name == "none") return Recompute::none;
  if (name == "mixer") return Recompute::mixer;
  if (name == "block") return Recompute::block;
  throw Error(Exit::usage, "train.recompute: unknown choice '" + name + "'",
              "choose none, mixer or block");
}

Block::Block(const ModelConfig& c, ParameterTable& table, const std::string& prefix,
             Recompute recompute)
    : D_(c.hidden_size), F_(c.intermediate_size), norm_eps_(c.norm_eps), recompute_(recompute) {
  using Kind = Initializer::Kind;
  const Initializer one{Kind::constant, 1};
  const Initializer in{Kind::uniform, 1 / std::sqrt(static_cast<double>(D_))};
  const double L = static_cast<double>(c.num_hidden_layers);
  const Initializer out{Kind::uniform, 1 / std::sqrt(static_cast<double>(F_) * 2 * L)};
  norm1_ = table.add({prefix + "attn_norm.weight", {D_}, one});
  mixer_ = make_mixer(c, table, prefix + "attn.");
  norm2_ = table.add({prefix + "mlp_norm.weight", {D_}, one});
  gate_proj_ = table.add({prefix + "mlp.gate_proj.weight", {F_, D_}, in, true}, true);
  up_proj_ = table.add({prefix + "mlp.up_proj.weight", {F_, D_}, in, true});
  down_proj_ = table.add({prefix + "mlp.down_proj.weight", {D_, F_}, out, true}, true);
}

void Block::forward(Context& ctx, Arena& keep, const Weights& w, const Sequence& seq, View x,
                    View y) {
  input_ = x;
  ArenaScope scope(*ctx.scratch);
  Arena& keep_block = recompute_ == Recompute::block ? *ctx.scratch : keep;
  Arena& keep_mixer = recompute_ == Recompute::none ? keep : *ctx.scratch;
  run(ctx, keep_block, keep_mixer, w, seq, y);
}

// The forward pass proper; an empty y stops after the last tensor that backward reads.
void Block::run(Context& ctx, Arena& keep, Arena& keep_mixer, const Weights& w, const Sequence& seq,
                View y) {
  saved_ = allocate(ctx, keep, input_.rows());
  norm(ctx, w, norm1_, input_, saved_.normed1, saved_.rstd1);
  mixer_->forward(ctx, keep_mixer, w, seq, saved_.normed1, input_, saved_.middle);
  norm(ctx, w, norm2_, saved_.middle, saved_.normed2, saved_.rstd2);
  gate(ctx, w, saved_);
  if (!y.empty())
    ops::matmul_forward(
        ctx, {.y = y, .x = saved_.hidden, .w = w.matrix(down_proj_), .residual = saved_.middle});
}

ResidualGradient ResidualGradient::allocate(const Context& ctx, Arena& arena, int64_t M,
                                            int64_t D) {
  const View acc = arena.allocate(ctx.accumulate, {M, D});
  return {acc, ctx.compute == ctx.accumulate ? acc : arena.allocate(ctx.compute, {M, D})};
}

void Block::backward(Context& ctx, const Weights& w, View gradients, const Sequence& seq,
                     const ResidualGradient& dx) {
  const ParameterTable& table = *w.table;
  Arena& scratch = *ctx.scratch;
  ArenaScope scope(scratch);
  const int64_t M = dx.acc.rows();
  if (recompute_ == Recompute::block) run(ctx, scratch, scratch, w, seq, View());

  View dnormed = scratch.allocate(ctx.compute, {M, D_});
  {  // SwiGLU
    ArenaScope inner(scratch);
    View dhidden = scratch.allocate(ctx.compute, {M, F_});
    View dgate_up = scratch.allocate(ctx.compute, {M, 2 * F_});
    ops::matmul_backward_weight(
        ctx, {.dw = table.view(gradients, down_proj_), .dy = dx.copy, .x = saved_.hidden});
    ops::matmul_backward_input(ctx, {.dx = dhidden, .dy = dx.copy, .w = w.matrix(down_proj_)});
    ops::swiglu_backward(ctx, {.dgate = dgate_up.columns(0, F_),
                               .dup = dgate_up.columns(F_, F_),
                               .dy = dhidden,
                               .gate = saved_.gate_up.columns(0, F_),
                               .up = saved_.gate_up.columns(F_, F_)});
    ops::matmul_backward_weight(
        ctx,
        {.dw = table.fused(gradients, gate_proj_, up_proj_), .dy = dgate_up, .x = saved_.normed2});
    ops::matmul_backward_input(
        ctx, {.dx = dnormed, .dy = dgate_up, .w = w.matrices(gate_proj_, up_proj_)});
  }
  ops::rms_norm_backward(ctx, {.dx = dx.acc,
                               .dx_copy = dx.second_output(),
                               .dw = table.view(gradients, norm2_),
                               .dresidual = dx.acc,
                               .dy = dnormed,
                               .x = saved_.middle,
                               .w = w.small(norm2_),
                               .rstd = saved_.rstd2});

  if (recompute_ == Recompute::mixer)
    mixer_->forward(ctx, scratch, w, seq, saved_.normed1, input_, View());
  mixer_->backward(ctx, w, gradients, seq, saved_.normed1, dx.copy, dnormed);
  ops::rms_norm_backward(ctx, {.dx = dx.acc,
                               .dx_copy = dx.second_output(),
                               .dw = table.view(gradients, norm1_),
                               .dresidual = dx.acc,
                               .dy = dnormed,
                               .x = input_,
                               .w = w.small(norm1_),
                               .rstd = saved_.rstd1});
}

void Block::forward_from(Context& ctx, const Weights& w, const Sequence& seq, View x,
                         LayerState& state) {
  ArenaScope scope(*ctx.scratch);
  Activations act = allocate(ctx, *ctx.scratch, x.rows());
  norm(ctx, w, norm1_, x, act.normed1, act.rstd1);
  mixer_->forward_from(ctx, w, seq, act.normed1, x, act.middle, state);
  norm(ctx, w, norm2_, act.middle, act.normed2, act.rstd2);
  gate(ctx, w, act);
  ops::matmul_forward(ctx,
                      {.y = x, .x = act.hidden, .w = w.matrix(down_proj_), .residual = act.middle});
}

LayerState Block::allocate_state(Context& ctx, Arena& arena, int64_t B) const {
  return mixer_->allocate_state(ctx, arena, B);
}

Block::Activations Block::allocate(Context& ctx, Arena& arena, int64_t M) const {
  return {.normed1 = arena.allocate(ctx.compute, {M, D_}),
          .rstd1 = arena.allocate(ctx.accumulate, {M}),
          .middle = arena.allocate(ctx.accumulate, {M, D_}),
          .normed2 = arena.allocate(ctx.compute, {M, D_}),
          .rstd2 = arena.allocate(ctx.accumulate, {M}),
          .gate_up = arena.allocate(ctx.compute, {M, 2 * F_}),
          .hidden = arena.allocate(ctx.compute, {M, F_})};
}

void Block::norm(Context& ctx, const Weights& w, int weight, View x, View y, View rstd) const {
  ops::rms_norm_forward(ctx,
                        {.y = y, .rstd = rstd, .x = x, .w = w.small(weight), .eps = norm_eps_});
}

void Block::gate(Context& ctx, const Weights& w, const Activations& act) const {
  ops::matmul_forward(
      ctx,
      {.y = act.gate_up, .x = act.normed2, .w = w.matrices(gate_proj_, up_proj_), .residual = {}});
  ops::swiglu_forward(
      ctx,
      {.y = act.hidden, .gate = act.gate_up.columns(0, F_), .up = act.gate_up.columns(F_, F_)});
}

}  // namespace kla
