// Where the raw inputs of a mixer lie: projections, the convolution's tail from the call before,
// and document starts. Shared by the forward and the backward pass of mixer_prep.
#pragma once

#include <algorithm>

#include "kernels/cpu/mixer_rows.h"

namespace kla::cpu {

inline constexpr int64_t kHalo = kConvTail;       // tokens after a chunk that read from it
inline constexpr int64_t kRows = kChunk + kHalo;  // rows of a backward tile

// One of q, k, v: its raw input and the columns of the tail it owns.
struct ConvChannels {
  View x;         // [B,T,H*width], columns
  View tail;      // [B,3,all] or empty
  int64_t width;  // channels of a head
  int64_t first;  // its first column in `tail`
  View w;         // [H*width,4]
};

struct MixerShape {
  int64_t B, T, H, K, V;
  explicit MixerShape(const MixerInputs& in)
      : B(in.a.dim(0)),
        T(in.a.dim(1)),
        H(in.a.dim(2)),
        K(in.q.cols() / std::max<int64_t>(H, 1)),
        V(in.v.cols() / std::max<int64_t>(H, 1)) {}
};

// The documents of one sequence.
struct Documents {
  int64_t T;
  const uint8_t* reset = nullptr;  // [T] or null
  int64_t before = 0;              // position of the token before the first

  Documents(const MixerInputs& in, int64_t b, int64_t tokens);
  bool starts(int64_t t) const { return reset && t >= 0 && t < T && reset[t] == 1; }
  // Position of token t in its document, from 1; t = -1 is the token before the call.
  int64_t position(int64_t t) const;
  // How many of the convolution's past taps stay inside the document of token t, at most 3. Tokens
  // before the call count: the tail holds zeros where it must not be seen.
  int64_t past(int64_t t) const;
};

ConvChannels query_channels(const MixerShape& s, const MixerInputs& in, const View& w);
ConvChannels key_channels(const MixerShape& s, const MixerInputs& in, const View& w);
ConvChannels value_channels(const MixerShape& s, const MixerInputs& in, const View& w);

// Fills the tap rows of tokens [t, t + rows) of head h; `zeros` has `width` zeros.
void find_taps(const MixerShape& s, const ConvChannels& channels, const Documents& documents,
               int64_t b, int64_t t, int64_t h, int64_t rows, const float* zeros, TapRows* taps);
// The weights of head h as four rows of `width`.
void transpose_taps(const ConvChannels& channels, int64_t h, float* w);

}  // namespace kla::cpu
