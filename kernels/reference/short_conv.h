// Where a token stands in its document, and what the short convolution of a token reads: the last
// four raw inputs of a channel, from this call or, before it, from the carried tail; zero where
// they would belong to an earlier document.
#pragma once

#include "kernels/reference/pieces.h"

namespace kla::reference {

struct DocumentPlace {
  int64_t start = -kConvTail;  // first token of the document in this call; it may have begun before
  int64_t position = 0;        // 1, 2, ... inside the document

  void advance(int64_t t, bool reset) {
    if (reset) {
      start = t;
      position = 0;
    }
    ++position;
  }
};

// The channels of q, k or v of one sequence.
template <class T>
struct ConvInput {
  Matrix<T> x;     // [T,channels] raw inputs of this call
  Matrix<T> tail;  // [3,channels] the three before; no rows: zeros

  T value(int64_t t, int64_t channel) const {
    if (t >= 0) return x[t][channel];
    return tail.rows > 0 ? tail[t + kConvTail][channel] : 0;
  }
  void taps(T* out, int64_t t, int64_t document_start, int64_t channel) const {
    for (int64_t j = 0; j < kConvWidth; ++j) {
      const int64_t source = t - kConvTail + j;
      out[j] = source >= document_start ? value(source, channel) : 0;
    }
  }
};

// c[i] = conv of channel first + i at token t, for `count` channels; w is [channels,4].
template <class T>
void conv_channels_forward(T* c, const ConvInput<T>& in, const Matrix<T>& w, int64_t first,
                           int64_t count, int64_t t, int64_t document_start) {
  T x[kConvWidth];
  for (int64_t i = 0; i < count; ++i) {
    in.taps(x, t, document_start, first + i);
    c[i] = short_conv_forward(w[first + i], x);
  }
}

// Adds to dw and to dx [T,channels]; inputs before this call have no gradient, but count for dw.
template <class T>
void conv_channels_backward(const Matrix<T>& dx, const Matrix<T>& dw, const T* dc,
                            const ConvInput<T>& in, const Matrix<T>& w, int64_t first,
                            int64_t count, int64_t t, int64_t document_start) {
  T x[kConvWidth];
  for (int64_t i = 0; i < count; ++i) {
    T dtaps[kConvWidth] = {};
    in.taps(x, t, document_start, first + i);
    short_conv_backward(dw[first + i], dtaps, w[first + i], x, dc[i]);
    for (int64_t j = 0; j < kConvWidth; ++j) {
      const int64_t source = t - kConvTail + j;
      if (source >= std::max<int64_t>(document_start, 0)) dx[source][first + i] += dtaps[j];
    }
  }
}

}  // namespace kla::reference
