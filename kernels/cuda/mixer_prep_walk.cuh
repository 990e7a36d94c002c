// The backward of mixer_prep where nothing stands in a straight walk's way (mixer_prep_walk.cu):
// how a sequence is cut, and whether a case is of this kind.
#pragma once

#include <algorithm>

#include "kernels/cuda/mixer_tokens.cuh"

namespace kla::KLA_BACKEND {

// A function of the shape alone. Steps are 4 tokens.
struct Walk {
  static constexpr int kTokens = 4, kMostSteps = 32, kMostThreads = 384, kChannels = 2;
  int steps, blocks, threads;  // steps of a block, blocks of a sequence, threads of a block

  explicit Walk(const MixerDims& s) : threads(((2 * s.K + s.V) / kChannels + 31) / 32 * 32) {
    constexpr int64_t kEnough = 1024;  // blocks that keep any GPU busy
    const int64_t all = (s.T + kTokens - 1) / kTokens, heads = static_cast<int64_t>(s.B) * s.H;
    steps = static_cast<int>(std::clamp<int64_t>(heads * all / kEnough, 1, kMostSteps));
    blocks = static_cast<int>((all + steps - 1) / steps);
  }
};

// For aligned quads, rules without softmax and without values by their own norm, no resets, and
// heads of at most Walk::kMostThreads pairs. `shares` as of add_shares, rows = B * Walk::blocks.
template <class T>
void walk_backward(const Context&, const MixerPrepBackward&, float* shares);

}  // namespace kla::KLA_BACKEND
