// The language model (PAPER_SPEC 1): embedding, L blocks, final norm, head tied to the embedding.
// Host code that never names a device: it calls op handles with a Context. Train with
// forward_backward(); feed text piece by piece with loss_from() and logits_from(), which carry a
// recurrent state of constant size.
#pragma once

#include <cstdint>
#include <vector>

#include "config/config.h"
#include "model/block.h"

namespace kla {

// M = B*T tokens in B rows.
struct Batch {
  Sequence sequence;
  View tokens;   // [M] i32 in [0, N)
  View targets;  // [M] i32 in [0, N), or -1: not a target
};

// Everything a sequence leaves behind: constant in its length.
struct RecurrentState {
  int64_t B = 0;
  std::vector<LayerState> layers;
};

class LanguageModel {
 public:
  explicit LanguageModel(const ModelConfig&, Recompute = Recompute::none);

  const ParameterTable& parameters() const { return table_; }
  int64_t embedding_count() const { return table_[embedding_].count; }
  int64_t vocab_size() const { return table_[embedding_].shape[0]; }

  // losses [M] acc of every target; adds the gradients of grad_scale * sum(losses) to `gradients`
  // [flat_size] acc. `activations` holds what backward needs and is given back before the return.
  void forward_backward(Context&, Arena& activations, const Weights&, View gradients, const Batch&,
                        double grad_scale, View losses);

  // losses [M] of the next tokens of the rows in `state`, which is advanced. No gradients.
  void loss_from(Context&, const Weights&, const Batch&, RecurrentState& state, View losses);

  // logits [B,N] acc after the last of the T tokens of each row; advances `state`.
  void logits_from(Context&, const Weights&, const Sequence&, View tokens, RecurrentState& state,
                   View logits);

  // The state before the first token: zeros.
  RecurrentState allocate_state(Context&, Arena&, int64_t B) const;
  static void clear(Context&, RecurrentState&);

 private:
  View hidden_from(Context&, const Weights&, const Sequence&, View tokens, RecurrentState& state);

  ParameterTable table_;
  int64_t D_;
  double norm_eps_;
  int embedding_, final_norm_;
  std::vector<Block> blocks_;
};

}  // namespace kla
