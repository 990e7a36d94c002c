#include "model/language_model.h"

#include <string>

#include "core/error.h"

namespace kla {

LanguageModel::LanguageModel(const ModelConfig& c, Recompute recompute)
    : D_(c.hidden_size), norm_eps_(c.norm_eps) {
  using Kind = Initializer::Kind;
  embedding_ =
      table_.add({"model.embeddings.weight", {c.vocab_size, D_}, {Kind::normal, 0.02}, true}, true);
  for (int64_t l = 0; l < c.num_hidden_layers; ++l)
    blocks_.emplace_back(c, table_, "model.layers." + std::to_string(l) + ".", recompute);
  final_norm_ = table_.add({"model.norm.weight", {D_}, {Kind::constant, 1}});
}

void LanguageModel::forward_backward(Context& ctx, Arena& activations, const Weights& w,
                                     View gradients, const Batch& batch, double grad_scale,
                                     View losses) {
  const Sequence& seq = batch.sequence;
  const int64_t M = seq.B * seq.T;
  ArenaScope scope(activations);

  View x = activations.allocate(ctx.accumulate, {M, D_});
  ops::embedding_forward(ctx, {.x = x, .tokens = batch.tokens, .table = w.matrix(embedding_)});
  for (Block& block : blocks_) {
    View y = activations.allocate(ctx.accumulate, {M, D_});
    block.forward(ctx, activations, w, seq, x, y);
    x = y;
  }

  View normed = activations.allocate(ctx.compute, {M, D_});
  View rstd = activations.allocate(ctx.accumulate, {M});
  View dnormed = activations.allocate(ctx.compute, {M, D_});
  const ResidualGradient dx = ResidualGradient::allocate(ctx, activations, M, D_);
  ops::rms_norm_forward(
      ctx, {.y = normed, .rstd = rstd, .x = x, .w = w.small(final_norm_), .eps = norm_eps_});
  ops::lm_head_loss(ctx, {.losses = losses,
                          .dx = dnormed,
                          .dw = table_.view(gradients, embedding_),
                          .x = normed,
                          .w = w.matrix(embedding_),
                          .targets = batch.targets,
                          .grad_scale = grad_scale});
  ops::rms_norm_backward(ctx, {.dx = dx.acc,
                               .dx_copy = dx.second_output(),
                               .dw = table_.view(gradients, final_norm_),
                               .dresidual = {},
                               .dy = dnormed,
                               .x = x,
                               .w = w.small(final_norm_),
                               .rstd = rstd});

  for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block)
    block->backward(ctx, w, gradients, seq, dx);
  ops::embedding_backward(
      ctx, {.dtable = table_.view(gradients, embedding_), .dx = dx.acc, .tokens = batch.tokens});
}

void LanguageModel::loss_from(Context& ctx, const Weights& w, const Batch& batch,
                              RecurrentState& state, View losses) {
  ArenaScope scope(*ctx.scratch);
  View hidden = hidden_from(ctx, w, batch.sequence, batch.tokens, state);
  ops::lm_head_loss(ctx, {.losses = losses,
                          .dx = {},
                          .dw = {},
                          .x = hidden,
                          .w = w.matrix(embedding_),
                          .targets = batch.targets});
}

void LanguageModel::logits_from(Context& ctx, const Weights& w, const Sequence& seq, View tokens,
                                RecurrentState& state, View logits) {
  ArenaScope scope(*ctx.scratch);
  View hidden = hidden_from(ctx, w, seq, tokens, state);
  // The last token of each row: a strided view of [B, T*D].
  View last = hidden.reshape({seq.B, seq.T * D_}).columns((seq.T - 1) * D_, D_);
  ops::matmul_forward(ctx, {.y = logits, .x = last, .w = w.matrix(embedding_), .residual = {}});
}

// RMSNorm of the last block's output, [M,D] compute, in scratch.
View LanguageModel::hidden_from(Context& ctx, const Weights& w, const Sequence& seq, View tokens,
                                RecurrentState& state) {
  KLA_CHECK(state.B == seq.B && state.layers.size() == blocks_.size(), "state of another model");
  Arena& scratch = *ctx.scratch;
  const int64_t M = seq.B * seq.T;
  View hidden = scratch.allocate(ctx.compute, {M, D_});
  View rstd = scratch.allocate(ctx.accumulate, {M});
  View x = scratch.allocate(ctx.accumulate, {M, D_});
  ops::embedding_forward(ctx, {.x = x, .tokens = tokens, .table = w.matrix(embedding_)});
  for (size_t l = 0; l < blocks_.size(); ++l)
    blocks_[l].forward_from(ctx, w, seq, x, state.layers[l]);
  ops::rms_norm_forward(
      ctx, {.y = hidden, .rstd = rstd, .x = x, .w = w.small(final_norm_), .eps = norm_eps_});
  return hidden;
}

RecurrentState LanguageModel::allocate_state(Context& ctx, Arena& arena, int64_t B) const {
  RecurrentState state;
  state.B = B;
  for (const Block& block : blocks_) state.layers.push_back(block.allocate_state(ctx, arena, B));
  return state;
}

void LanguageModel::clear(Context& ctx, RecurrentState& state) {
  for (LayerState& layer : state.layers)
    for (View view : {layer.S, layer.conv_tail, layer.position}) zero_fill(ctx, view);
}

}  // namespace kla
