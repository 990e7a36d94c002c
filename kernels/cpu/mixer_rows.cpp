#include "kernels/cpu/mixer_rows.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/mixer_rows.cpp"
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"
#include "kernels/cpu/vector_math.h"

HWY_BEFORE_NAMESPACE();
namespace kla::cpu::HWY_NAMESPACE {

constexpr int64_t kAhead = 4;  // rows to prefetch

template <class D>
HWY_INLINE hn::Vec<D> Convolve(D d, const TapRows& x, const float* w, int64_t width, int64_t j) {
  auto c = hn::Mul(hn::LoadU(d, w + j), hn::LoadU(d, x[0] + j));
  c = hn::MulAdd(hn::LoadU(d, w + width + j), hn::LoadU(d, x[1] + j), c);
  c = hn::MulAdd(hn::LoadU(d, w + 2 * width + j), hn::LoadU(d, x[2] + j), c);
  return hn::MulAdd(hn::LoadU(d, w + 3 * width + j), hn::LoadU(d, x[3] + j), c);
}

template <bool kSilu>
void ForwardRows(const ConvForward& a) {
  for (int64_t i = 0; i < a.rows; ++i) {
    if (i + kAhead < a.rows) prefetch_row(a.x[i + kAhead][kConvTail], a.width);
    const TapRows x = a.x[i];
    const float factor = a.factor ? a.factor[i] : 1.0f;
    float* y = a.y.data + i * a.y.ld;
    const float squares = sum_lanes(a.width, [&](auto d, int64_t j) KLA_LANES_INLINE {
      auto c = Convolve(d, x, a.w, a.width, j);
      if constexpr (kSilu) c = hn::Mul(c, logistic(d, c));
      c = hn::Mul(c, hn::Set(d, factor));
      hn::StoreU(c, d, y + j);
      return hn::Mul(c, c);
    });
    if (a.squares) a.squares[i] = squares;
  }
}
void Forward(const ConvForward& a) {
  a.silu ? ForwardRows<true>(a) : ForwardRows<false>(a);
}

template <bool kSilu>
void RecomputeRows(const ConvRecompute& a) {
  for (int64_t i = 0; i < a.rows; ++i) {
    const TapRows x = a.x[i];
    const float* dy = a.dy_hat.data + i * a.dy_hat.ld;
    if (i + kAhead < a.rows) {
      prefetch_row(a.x[i + kAhead][kConvTail], a.width);
      prefetch_row(dy + kAhead * a.dy_hat.ld, a.width);
    }
    float *y_out = a.y.data + i * a.y.ld, *slope = a.slope.data + i * a.slope.ld;
    a.squares[i] = sum_lanes(a.width, [&](auto d, int64_t j) KLA_LANES_INLINE {
      const auto c = Convolve(d, x, a.w, a.width, j), one = hn::Set(d, 1.0f);
      auto y = c;
      if constexpr (kSilu) {
        const auto sig = logistic(d, c);
        y = hn::Mul(c, sig);
        hn::StoreU(hn::Mul(sig, hn::MulAdd(c, hn::Sub(one, sig), one)), d, slope + j);
      } else {
        hn::StoreU(one, d, slope + j);
      }
      hn::StoreU(y, d, y_out + j);
      return hn::Mul(y, y);
    });
    a.dots[i] = sum_lanes(a.width, [&](auto d, int64_t j) KLA_LANES_INLINE {
      return hn::Mul(hn::LoadU(d, y_out + j), hn::LoadU(d, dy + j));
    });
  }
}
void Recompute(const ConvRecompute& a) {
  a.silu ? RecomputeRows<true>(a) : RecomputeRows<false>(a);
}

void NormBackward(int64_t rows, int64_t width, const float* alpha, Tile dy_hat, const float* gamma,
                  Tile y, Tile slope, MutableTile dc) {
  for (int64_t i = 0; i < rows; ++i) {
    const float *g = dy_hat.data + i * dy_hat.ld, *y_i = y.data + i * y.ld;
    const float* f = slope.data + i * slope.ld;
    float* out = dc.data + i * dc.ld;
    for_lanes(width, [&](auto d, int64_t j) KLA_LANES_INLINE {
      const auto dy = hn::MulAdd(hn::Set(d, gamma[i]), hn::LoadU(d, y_i + j),
                                 hn::Mul(hn::Set(d, alpha[i]), hn::LoadU(d, g + j)));
      hn::StoreU(hn::Mul(dy, hn::LoadU(d, f + j)), d, out + j);
    });
  }
}

// Channels outside, tokens inside: the weights and their gradients stay in registers.
void Backward(const ConvBackward& a) {
  for_lanes(a.width, [&](auto d, int64_t j) KLA_LANES_INLINE {
    const int64_t W = a.width;
    const auto w0 = hn::LoadU(d, a.w + j), w1 = hn::LoadU(d, a.w + W + j);
    const auto w2 = hn::LoadU(d, a.w + 2 * W + j), w3 = hn::LoadU(d, a.w + 3 * W + j);
    auto dw0 = hn::LoadU(d, a.dw + j), dw1 = hn::LoadU(d, a.dw + W + j);
    auto dw2 = hn::LoadU(d, a.dw + 2 * W + j), dw3 = hn::LoadU(d, a.dw + 3 * W + j);
    for (int64_t i = 0; i < a.rows; ++i) {
      const TapRows &x = a.x[i], &dc = a.dc[i];
      const auto own = hn::LoadU(d, dc[0] + j);
      auto dx = hn::Mul(w3, own);
      dx = hn::MulAdd(w2, hn::LoadU(d, dc[1] + j), dx);
      dx = hn::MulAdd(w1, hn::LoadU(d, dc[2] + j), dx);
      dx = hn::MulAdd(w0, hn::LoadU(d, dc[3] + j), dx);
      hn::StoreU(dx, d, a.dx.data + i * a.dx.ld + j);
      dw0 = hn::MulAdd(own, hn::LoadU(d, x[0] + j), dw0);
      dw1 = hn::MulAdd(own, hn::LoadU(d, x[1] + j), dw1);
      dw2 = hn::MulAdd(own, hn::LoadU(d, x[2] + j), dw2);
      dw3 = hn::MulAdd(own, hn::LoadU(d, x[3] + j), dw3);
    }
    hn::StoreU(dw0, d, a.dw + j);
    hn::StoreU(dw1, d, a.dw + W + j);
    hn::StoreU(dw2, d, a.dw + 2 * W + j);
    hn::StoreU(dw3, d, a.dw + 3 * W + j);
  });
}

void Softmax(int64_t rows, int64_t width, MutableTile y) {
  for (int64_t i = 0; i < rows; ++i) {
    float* row = y.data + i * y.ld;
    const float top = *std::max_element(row, row + width);
    const float sum = sum_lanes(width, [&](auto d, int64_t j) KLA_LANES_INLINE {
      const auto e = exp(d, hn::Sub(hn::LoadU(d, row + j), hn::Set(d, top)));
      hn::StoreU(e, d, row + j);
      return e;
    });
    for_lanes(width, [&](auto d, int64_t j) KLA_LANES_INLINE {
      hn::StoreU(hn::Div(hn::LoadU(d, row + j), hn::Set(d, sum)), d, row + j);
    });
  }
}

void SoftmaxBackward(int64_t rows, int64_t width, Tile y, Tile dy_hat, MutableTile dc) {
  for (int64_t i = 0; i < rows; ++i) {
    const float *p = y.data + i * y.ld, *g = dy_hat.data + i * dy_hat.ld;
    float* out = dc.data + i * dc.ld;
    const float mean = sum_lanes(width, [&](auto d, int64_t j) KLA_LANES_INLINE {
      return hn::Mul(hn::LoadU(d, p + j), hn::LoadU(d, g + j));
    });
    for_lanes(width, [&](auto d, int64_t j) KLA_LANES_INLINE {
      const auto centred = hn::Sub(hn::LoadU(d, g + j), hn::Set(d, mean));
      hn::StoreU(hn::Mul(hn::LoadU(d, p + j), centred), d, out + j);
    });
  }
}

}  // namespace kla::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kla::cpu {

HWY_EXPORT(Forward);
void conv_forward(const ConvForward& a) {
  HWY_DYNAMIC_DISPATCH(Forward)(a);
}

HWY_EXPORT(Recompute);
void conv_recompute(const ConvRecompute& a) {
  HWY_DYNAMIC_DISPATCH(Recompute)(a);
}

HWY_EXPORT(NormBackward);
void norm_backward(int64_t rows, int64_t width, const float* alpha, Tile dy_hat, const float* gamma,
                   Tile y, Tile slope, MutableTile dc) {
  HWY_DYNAMIC_DISPATCH(NormBackward)(rows, width, alpha, dy_hat, gamma, y, slope, dc);
}

HWY_EXPORT(Backward);
void conv_backward(const ConvBackward& a) {
  HWY_DYNAMIC_DISPATCH(Backward)(a);
}

HWY_EXPORT(Softmax);
void softmax_rows(int64_t rows, int64_t width, MutableTile y) {
  HWY_DYNAMIC_DISPATCH(Softmax)(rows, width, y);
}

HWY_EXPORT(SoftmaxBackward);
void softmax_backward_rows(int64_t rows, int64_t width, Tile y, Tile dy_hat, MutableTile dc) {
  HWY_DYNAMIC_DISPATCH(SoftmaxBackward)(rows, width, y, dy_hat, dc);
}

}  // namespace kla::cpu
#endif
