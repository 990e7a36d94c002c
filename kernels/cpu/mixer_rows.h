// The vectorised inner loops of mixer_prep: width-4 causal convolution, SiLU and their derivatives
// over a tile of tokens (rows) and the channels of one head (columns), and a row softmax.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/cpu/tile_gemm.h"
#include "kernels/ops.h"

namespace kla::cpu {

// The four rows a token's convolution reads, oldest first; a dropped tap points to a row of zeros.
using TapRows = std::array<const float*, kConvWidth>;

// y = f(sum_i w_i x_i) with f = silu or the identity, times factor[row] if given; w is [4][width].
// squares[row] = |y|^2 if asked for.
struct ConvForward {
  int64_t rows, width;
  const TapRows* x;
  const float* w;
  bool silu;
  const float* factor;  // [rows] or null
  MutableTile y;
  float* squares;  // [rows] or null
};
void conv_forward(const ConvForward& a);

// The same without the factor, beside it the slope f' and the row sums that the derivatives of the
// norms need: squares = |y|^2, dots = y . dy_hat.
struct ConvRecompute {
  int64_t rows, width;
  const TapRows* x;
  const float* w;
  bool silu;
  Tile dy_hat;
  MutableTile y, slope;
  float *squares, *dots;  // [rows]
};
void conv_recompute(const ConvRecompute& a);

// dc = (alpha dy_hat + gamma y) slope, row by row.
void norm_backward(int64_t rows, int64_t width, const float* alpha, Tile dy_hat, const float* gamma,
                   Tile y, Tile slope, MutableTile dc);

// dx[row] = sum_i w_i dc[row + 3 - i]; dw_i[.] += sum over rows of dc[row] x_i. `dc` lists, for
// each row, its own gradient and those of the three tokens that follow, zeros where none follows.
struct ConvBackward {
  int64_t rows, width;
  const TapRows* x;
  const TapRows* dc;  // [row][0]: the token's own
  const float* w;
  MutableTile dx;
  float* dw;  // [4][width], added to
};
void conv_backward(const ConvBackward& a);

void softmax_rows(int64_t rows, int64_t width, MutableTile y);
// dc = y o (dy_hat - y . dy_hat).
void softmax_backward_rows(int64_t rows, int64_t width, Tile y, Tile dy_hat, MutableTile dc);

}  // namespace kla::cpu
