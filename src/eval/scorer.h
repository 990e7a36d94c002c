// Scorer: nats of every target of some windows of tokens, each window from the empty state. A
// window of any length is fed in segments through the recurrent state, so memory does not depend on
// the length.
#pragma once

#include <cstdint>
#include <vector>

#include "model/language_model.h"

namespace kla {

struct Window {
  std::vector<int32_t> tokens;  // n+1: inputs tokens[0..n), targets tokens[1..n]
  std::vector<uint8_t> reset;   // n, or empty: 1 where a document starts

  int64_t targets() const { return static_cast<int64_t>(tokens.size()) - 1; }
};

class Scorer {
 public:
  static constexpr int64_t kTokens = 2048;  // tokens a forward pass; more only costs memory

  // For windows of up to `length` targets. The state and the token buffers are allocated from
  // `arena`, what a forward pass needs from context.scratch; with a dry-run context and counting
  // arenas this and plan() are the memory plan.
  Scorer(Context& context, Arena& arena, LanguageModel& model, const Weights& weights,
         int64_t length);

  void plan();
  int64_t rows() const { return B_; }  // windows a call takes
  int64_t segment() const { return S_; }

  // losses[w][i]: nats of target i of window w. At most rows() windows of at most `length` targets.
  std::vector<std::vector<float>> score(const std::vector<Window>& windows);

 private:
  void load(const std::vector<Window>& windows, int64_t first, int64_t T, bool resets);

  Context& context_;
  LanguageModel& model_;
  const Weights& weights_;
  int64_t B_, S_;
  RecurrentState state_;
  View tokens_, targets_;  // [B*S] i32
  View reset_;             // [B,S] u8
  View losses_;            // [B*S] acc
  struct Staged {          // the same on the host
    std::vector<int32_t> tokens, targets;
    std::vector<uint8_t> reset;
  } host_;
};

}  // namespace kla
