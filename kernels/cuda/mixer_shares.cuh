// Gradients of the mixer's small parameters: each block of the backward kernel keeps the share of
// its head's in a row of scratch memory, and a second kernel sums the rows in double, in one order.
#pragma once

#include "kernels/cuda/mixer_tokens.cuh"

namespace kla::KLA_BACKEND {

enum { kBBias, kALog, kABias, kTheta, kScalars };

// A block's share of the gradients of its head: [K,4], [K,4], [V,4], [kScalars].
struct Share {
  int K, V;
  __device__ int conv(int part) const { return 4 * K * part; }
  KLA_HD int scalars() const { return 4 * (2 * K + V); }
  KLA_HD int floats() const { return scalars() + kScalars; }
};

// dw += the shares [rows, H, Share::floats()], theta's by its softplus (mixer_shares.cu).
void add_shares(const Context&, const MixerPrepBackward&, const MixerDims&, int rows,
                const float* shares);

}  // namespace kla::KLA_BACKEND
