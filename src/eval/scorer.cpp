#include "eval/scorer.h"

#include <algorithm>

#include "core/error.h"

namespace kla {

Scorer::Scorer(Context& context, Arena& arena, LanguageModel& model, const Weights& weights,
               int64_t length)
    : context_(context),
      model_(model),
      weights_(weights),
      B_(std::max<int64_t>(1, kTokens / length)),
      S_(std::clamp<int64_t>(length, 2, kTokens)),
      state_(model.allocate_state(context, arena, B_)),
      tokens_(arena.allocate(DType::i32, {B_ * S_})),
      targets_(arena.allocate(DType::i32, {B_ * S_})),
      reset_(arena.allocate(DType::u8, {B_, S_})),
      losses_(arena.allocate(context.accumulate, {B_ * S_})) {}

void Scorer::plan() {
  model_.loss_from(context_, weights_, {{B_, S_, reset_}, tokens_, targets_}, state_, losses_);
}

std::vector<std::vector<float>> Scorer::score(const std::vector<Window>& windows) {
  KLA_CHECK(static_cast<int64_t>(windows.size()) <= B_, "more windows than rows");
  int64_t longest = 0;
  bool resets = false;
  std::vector<std::vector<float>> losses(windows.size());
  for (size_t w = 0; w < windows.size(); ++w) {
    longest = std::max(longest, windows[w].targets());
    resets = resets || !windows[w].reset.empty();
    losses[w].resize(static_cast<size_t>(windows[w].targets()));
  }
  LanguageModel::clear(context_, state_);
  for (int64_t first = 0; first < longest; first += S_) {
    // Two at least: a one-token step cannot reset its document. What lies beyond a window is no
    // target.
    const int64_t T = std::clamp<int64_t>(longest - first, 2, S_);
    load(windows, first, T, resets);
    const Sequence seq{B_, T, resets ? View(reset_.data, DType::u8, {B_, T}) : View()};
    const View losses_now(losses_.data, losses_.dtype, {B_ * T});
    model_.loss_from(
        context_, weights_,
        {seq, View(tokens_.data, DType::i32, {B_ * T}), View(targets_.data, DType::i32, {B_ * T})},
        state_, losses_now);
    for (size_t w = 0; w < windows.size(); ++w) {
      const int64_t count = std::min(T, windows[w].targets() - first);
      for (int64_t t = 0; t < count; ++t) {
        const int64_t m = static_cast<int64_t>(w) * T + t;
        losses[w][static_cast<size_t>(first + t)] =
            losses_.dtype == DType::f64 ? static_cast<float>(losses_now.as<double>()[m])
                                        : losses_now.as<float>()[m];
      }
    }
  }
  return losses;
}

// The next T inputs and targets of every row.
void Scorer::load(const std::vector<Window>& windows, int64_t first, int64_t T, bool resets) {
  int32_t* tokens = tokens_.as<int32_t>();
  int32_t* targets = targets_.as<int32_t>();
  uint8_t* reset = reset_.as<uint8_t>();
  std::fill_n(tokens, B_ * T, 0);
  std::fill_n(targets, B_ * T, -1);
  if (resets) std::fill_n(reset, B_ * T, uint8_t{0});
  for (size_t w = 0; w < windows.size(); ++w) {
    const int64_t count = std::min(T, windows[w].targets() - first);
    for (int64_t t = 0; t < count; ++t) {
      const int64_t m = static_cast<int64_t>(w) * T + t;
      const auto i = static_cast<size_t>(first + t);
      tokens[m] = windows[w].tokens[i];
      targets[m] = windows[w].tokens[i + 1];
      if (!windows[w].reset.empty()) reset[m] = windows[w].reset[i];
    }
  }
}

}  // namespace kla
