#include "eval/scorer.h"

#include <algorithm>

#include "core/device.h"
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
    const View tokens_now(tokens_.data, DType::i32, {B_ * T}),
        targets_now(targets_.data, DType::i32, {B_ * T}),
        reset_now(reset_.data, DType::u8, {B_, T}),
        losses_now(losses_.data, losses_.dtype, {B_ * T});
    upload(context_, tokens_now, host_.tokens.data());
    upload(context_, targets_now, host_.targets.data());
    if (resets) upload(context_, reset_now, host_.reset.data());
    const Sequence seq{B_, T, resets ? reset_now : View()};
    model_.loss_from(context_, weights_, {seq, tokens_now, targets_now}, state_, losses_now);
    const std::vector<double> all = downloaded_as_double(context_, losses_now);
    for (size_t w = 0; w < windows.size(); ++w) {
      const int64_t count = std::min(T, windows[w].targets() - first);
      for (int64_t t = 0; t < count; ++t)
        losses[w][static_cast<size_t>(first + t)] =
            static_cast<float>(all[w * static_cast<size_t>(T) + static_cast<size_t>(t)]);
    }
  }
  return losses;
}

// The next T inputs and targets of every row.
void Scorer::load(const std::vector<Window>& windows, int64_t first, int64_t T, bool resets) {
  host_.tokens.assign(static_cast<size_t>(B_ * T), 0);
  host_.targets.assign(static_cast<size_t>(B_ * T), -1);
  if (resets) host_.reset.assign(static_cast<size_t>(B_ * T), 0);
  for (size_t w = 0; w < windows.size(); ++w) {
    const int64_t count = std::min(T, windows[w].targets() - first);
    for (int64_t t = 0; t < count; ++t) {
      const auto m = w * static_cast<size_t>(T) + static_cast<size_t>(t);
      const auto i = static_cast<size_t>(first + t);
      host_.tokens[m] = windows[w].tokens[i];
      host_.targets[m] = windows[w].tokens[i + 1];
      if (!windows[w].reset.empty()) host_.reset[m] = windows[w].reset[i];
    }
  }
}

}  // namespace kla
