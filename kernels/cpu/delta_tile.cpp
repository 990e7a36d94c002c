#include "kernels/cpu/delta_tile.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "core/error.h"

#ifndef KLA_DELTA_TILE_SUMS
#define KLA_DELTA_TILE_SUMS
namespace kla::cpu {
// The cumulative log-decay as the sum of two floats: differences of large sums keep their digits.
struct DecaySums {
  alignas(64) float high[C], low[C];
};
}  // namespace kla::cpu
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/delta_tile.cpp"
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"
#include "kernels/cpu/vector_math.h"

HWY_BEFORE_NAMESPACE();
namespace kla::cpu::HWY_NAMESPACE {

using Vector = hn::Vec<Lanes>;

// Calls f(j, lane indices) for the vectors of a 64-column row.
template <class F>
HWY_INLINE void for_columns(F&& f) {
  const Lanes d;
  for (int64_t j = 0; j < C; j += static_cast<int64_t>(hn::Lanes(d)))
    f(j, hn::Iota(d, static_cast<float>(j)));
}

// e^(a - b) where a <= b; the bound stands first in Min, so that a NaN gets through.
HWY_INLINE Vector DecayBetween(Vector a_high, Vector a_low, Vector b_high, Vector b_low) {
  const Lanes d;
  const Vector difference = hn::Add(hn::Sub(a_high, b_high), hn::Sub(a_low, b_low));
  return exp(d, hn::Min(hn::Zero(d), difference));
}

// first[i] is the first row of the document of row i.
void Decays(ChunkDecay& decay, const DecaySums& G, const int64_t* first) {
  const Lanes d;
  const Vector zero = hn::Zero(d);
  for (int64_t i = 0; i < decay.n; ++i) {
    float* row = decay.Gam + i * C;
    const Vector down = hn::Set(d, static_cast<float>(first[i]) - 0.5f);
    const Vector up = hn::Set(d, static_cast<float>(i) + 0.5f);
    const Vector high_i = hn::Set(d, G.high[i]), low_i = hn::Set(d, G.low[i]);
    for_columns([&](int64_t j, Vector column) KLA_LANES_INLINE {
      const auto inside = hn::And(hn::Gt(column, down), hn::Lt(column, up));
      const Vector factor =
          DecayBetween(high_i, low_i, hn::Load(d, G.high + j), hn::Load(d, G.low + j));
      hn::Store(hn::IfThenElseZero(inside, factor), d, row + j);
    });
  }
  const Vector head = hn::Set(d, static_cast<float>(decay.head) - 0.5f);
  const Vector tail = hn::Set(d, static_cast<float>(decay.tail) - 0.5f);
  const Vector last_high = hn::Set(d, G.high[decay.n - 1]);
  const Vector last_low = hn::Set(d, G.low[decay.n - 1]);
  for_columns([&](int64_t j, Vector column) KLA_LANES_INLINE {
    const Vector high = hn::Load(d, G.high + j), low = hn::Load(d, G.low + j);
    const Vector D = DecayBetween(high, low, zero, zero);
    const Vector E = DecayBetween(last_high, last_low, high, low);
    hn::Store(hn::IfThenElseZero(hn::Lt(column, head), D), d, decay.D + j);
    hn::Store(hn::IfThenElseZero(hn::Gt(column, tail), E), d, decay.E + j);
  });
  decay.gamma = decay.head == decay.n ? decay.D[decay.n - 1] : 0;
}

// factor o x where the factor is not zero, else zero whatever x is.
HWY_INLINE Vector Gated(Vector factor, Vector x) {
  const Lanes d;
  return hn::IfThenElseZero(hn::Ne(factor, hn::Zero(d)), hn::Mul(factor, x));
}

void GateScores(const ChunkDecay& decay, float scale, float* P) {
  const Lanes d;
  const Vector s = hn::Set(d, scale);
  for (int64_t i = 0; i < decay.n; ++i)
    for_columns([&](int64_t j, Vector) KLA_LANES_INLINE {
      const Vector gam = hn::Mul(s, hn::Load(d, decay.Gam + i * C + j));
      hn::Store(Gated(gam, hn::Load(d, P + i * C + j)), d, P + i * C + j);
    });
}

void GateInverse(const ChunkDecay& decay, Tile T_zero, float* Tg) {
  const Lanes d;
  for (int64_t i = 0; i < decay.n; ++i)
    for_columns([&](int64_t j, Vector) KLA_LANES_INLINE {
      const Vector gam = hn::Load(d, decay.Gam + i * C + j);
      hn::Store(Gated(gam, hn::LoadU(d, T_zero.data + i * T_zero.ld + j)), d, Tg + i * C + j);
    });
}

void ScaleColumns(const ChunkDecay& decay, const float* Tg, float* M) {
  const Lanes d;
  for (int64_t i = 0; i < decay.n; ++i)
    for_columns([&](int64_t j, Vector) KLA_LANES_INLINE {
      const Vector x = hn::Mul(hn::Load(d, Tg + i * C + j), hn::Load(d, decay.beta + j));
      hn::Store(x, d, M + i * C + j);
    });
}

void Adjoint(const ChunkDecay& decay, float scale, const ChunkAdjoint& a) {
  const Lanes d;
  const Vector s = hn::Set(d, scale);
  alignas(64) float below[C] = {};  // column sums of Z over the rows visited so far
  for (int64_t i = decay.n - 1; i >= 0; --i) {
    const float *gam_i = decay.Gam + i * C, *P = a.P + i * C, *KK = a.KK + i * C;
    float *dP = a.dP + i * C, *NX = a.NX + i * C;
    const Vector row = hn::Set(d, static_cast<float>(i) - 0.5f);
    const Vector beta = hn::Set(d, decay.beta[i]);
    Vector dbeta = hn::Zero(d), dg = hn::Zero(d);
    for_columns([&](int64_t j, Vector column) KLA_LANES_INLINE {
      const auto left = hn::Lt(column, row);
      const Vector gam = hn::Load(d, gam_i + j);
      const Vector z = Gated(hn::Load(d, P + j), hn::Load(d, dP + j));
      hn::Store(hn::Mul(s, Gated(gam, hn::Load(d, dP + j))), d, dP + j);
      const Vector dA = hn::IfThenElseZero(left, hn::Neg(Gated(gam, hn::Load(d, NX + j))));
      const Vector w = hn::Mul(beta, dA);
      hn::Store(w, d, NX + j);
      const Vector kk = hn::IfThenElseZero(left, hn::Load(d, KK + j));
      dbeta = hn::MulAdd(dA, kk, dbeta);
      const Vector sum = hn::Add(hn::Load(d, below + j), hn::MulAdd(w, kk, z));
      hn::Store(sum, d, below + j);
      dg = hn::Add(dg, hn::IfThenElseZero(left, sum));
    });
    a.dbeta[i] += sum_of(d, dbeta);
    a.dg[i] += sum_of(d, dg);
  }
  for (int64_t i = 0; i < decay.n; ++i)
    for (int64_t j = 0; j < i; ++j) a.NX[j * C + i] = a.NX[i * C + j];
}

void ScaleRows(int64_t rows, int64_t width, const float* factor, Tile x, MutableTile y) {
  for (int64_t i = 0; i < rows; ++i) {
    const float *from = x.data + i * x.ld, f = factor[i];
    float* to = y.data + i * y.ld;
    for_lanes(width, [&](auto d, int64_t j) KLA_LANES_INLINE {
      hn::StoreU(hn::Mul(hn::Set(d, f), hn::LoadU(d, from + j)), d, to + j);
    });
  }
}

void SubtractScaledRows(int64_t rows, int64_t width, Tile v, const float* factor, Tile r,
                        MutableTile y) {
  for (int64_t i = 0; i < rows; ++i) {
    const float *a = v.data + i * v.ld, *b = r.data + i * r.ld, f = factor[i];
    float* to = y.data + i * y.ld;
    for_lanes(width, [&](auto d, int64_t j) KLA_LANES_INLINE {
      hn::StoreU(hn::NegMulAdd(hn::Set(d, f), hn::LoadU(d, b + j), hn::LoadU(d, a + j)), d, to + j);
    });
  }
}

void RowDots(int64_t rows, int64_t width, Tile x, Tile y, float* sums) {
  for (int64_t i = 0; i < rows; ++i) {
    const float *a = x.data + i * x.ld, *b = y.data + i * y.ld;
    sums[i] = sum_lanes(width, [&](auto d, int64_t j) KLA_LANES_INLINE {
      return hn::Mul(hn::LoadU(d, a + j), hn::LoadU(d, b + j));
    });
  }
}

void ScaleRowsAndDot(int64_t rows, int64_t width, const float* factor, Tile x, MutableTile y,
                     Tile z, float* sums) {
  for (int64_t i = 0; i < rows; ++i) {
    const float *from = x.data + i * x.ld, *other = z.data + i * z.ld, f = factor[i];
    float* to = y.data + i * y.ld;
    sums[i] = sum_lanes(width, [&](auto d, int64_t j) KLA_LANES_INLINE {
      const auto scaled = hn::Mul(hn::Set(d, f), hn::LoadU(d, from + j));
      hn::StoreU(scaled, d, to + j);
      return hn::Mul(scaled, hn::LoadU(d, other + j));
    });
  }
}

// Row i of the inverse: e_i - sum_{l<i} A_il T_l. Two partial sums hide the latency of the chain.
void UnitLowerInverse(int64_t n, const float* A, MutableTile T_zero) {
  const Lanes d;
  for (int64_t i = 0; i < C; ++i) {
    float* out = T_zero.data + i * T_zero.ld;
    const Vector row = hn::Set(d, static_cast<float>(i));
    for_columns([&](int64_t j, Vector column) KLA_LANES_INLINE {
      Vector even = hn::IfThenElseZero(hn::Eq(column, row), hn::Set(d, 1.0f)), odd = hn::Zero(d);
      if (i < n) {
        int64_t l = j;  // T_l is zero right of column l
        for (; l + 1 < i; l += 2) {
          const float* T_l = T_zero.data + l * T_zero.ld + j;
          even = hn::NegMulAdd(hn::Set(d, A[i * C + l]), hn::LoadU(d, T_l), even);
          odd = hn::NegMulAdd(hn::Set(d, A[i * C + l + 1]), hn::LoadU(d, T_l + T_zero.ld), odd);
        }
        if (l < i)
          even = hn::NegMulAdd(hn::Set(d, A[i * C + l]),
                               hn::LoadU(d, T_zero.data + l * T_zero.ld + j), even);
      }
      hn::StoreU(hn::Add(even, odd), d, out + j);
    });
  }
}

}  // namespace kla::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kla::cpu {

float* Slice::take(int64_t floats) {
  floats = padded(floats);
  KLA_CHECK(floats <= left_,
            "worker scratch is " + std::to_string(floats - left_) + " floats short");
  float* piece = next_;
  next_ += floats;
  left_ -= floats;
  return piece;
}

WorkerScratch::WorkerScratch(Context& context, int64_t floats)
    : floats_(Slice::padded(floats)),
      memory_(context.scratch->allocate<float>(floats_ * context.pool->threads())) {}

ChunkGrid::ChunkGrid(const DeltaInputs& in, const View& values)
    : B(in.q.dim(0)),
      T(in.q.dim(1)),
      H(in.q.dim(2)),
      K(in.q.dim(3)),
      V(values.dim(3)),
      NC(chunk_count(T)) {
  KLA_CHECK(in.T_zero.rank == 5 && in.T_zero.dim(4) == C,
            "the cpu kernels take chunks of 64, not " + in.T_zero.describe());
}

MutableTile ChunkGrid::tokens(const View& view, int64_t b, int64_t c, int64_t h) const {
  return {view.as<float>() + ((b * T + c * C) * H + h) * view.stride, H * view.stride};
}

MutableTile ChunkGrid::scalars(const View& view, int64_t b, int64_t c, int64_t h) const {
  return {view.as<float>() + (b * T + c * C) * view.stride + h, view.stride};
}

MutableTile ChunkGrid::matrix(const View& view, int64_t b, int64_t c, int64_t h) const {
  return {view.as<float>() + ((b * NC + c) * H + h) * view.dim(3) * view.stride, view.stride};
}

MutableTile ChunkGrid::state(const View& view, int64_t b, int64_t h) const {
  return {view.as<float>() + (b * H + h) * view.dim(2) * view.stride, view.stride};
}

void copy_rows(int64_t rows, int64_t width, Tile from, MutableTile to) {
  for (int64_t i = 0; i < rows; ++i)
    std::memmove(to.data + i * to.ld, from.data + i * from.ld,
                 static_cast<size_t>(width) * sizeof(float));
}

void zero_rows(int64_t rows, int64_t width, MutableTile to) {
  for (int64_t i = 0; i < rows; ++i) std::fill_n(to.data + i * to.ld, width, 0.0f);
}

HWY_EXPORT(Decays);
void load_decay(const ChunkGrid& grid, const DeltaInputs& in, int64_t b, int64_t c, int64_t h,
                ChunkDecay& decay) {
  decay.n = decay.head = grid.rows(c);
  decay.tail = 0;
  DecaySums G;
  double sum = 0;
  int64_t first[C];
  const Tile g = grid.scalars(in.g, b, c, h), beta = grid.scalars(in.beta, b, c, h);
  const uint8_t* reset = in.reset.empty() ? nullptr : in.reset.as<uint8_t>() + (b * grid.T + c * C);
  for (int64_t i = 0; i < decay.n; ++i) {
    if (reset && reset[i] == 1) {
      decay.head = std::min(decay.head, i);
      decay.tail = i;
      sum = 0;
    }
    first[i] = decay.tail;
    sum += g.data[i * g.ld];
    G.high[i] = static_cast<float>(sum);
    G.low[i] = static_cast<float>(sum - G.high[i]);
    decay.beta[i] = beta.data[i * beta.ld];
  }
  std::fill(G.high + decay.n, G.high + C, G.high[decay.n - 1]);
  std::fill(G.low + decay.n, G.low + C, G.low[decay.n - 1]);
  std::fill(decay.beta + decay.n, decay.beta + C, 0.0f);
  HWY_DYNAMIC_DISPATCH(Decays)(decay, G, first);
}

HWY_EXPORT(GateScores);
void gate_scores(const ChunkDecay& decay, float scale, float* P) {
  HWY_DYNAMIC_DISPATCH(GateScores)(decay, scale, P);
}

HWY_EXPORT(GateInverse);
void gate_inverse(const ChunkDecay& decay, Tile T_zero, float* Tg) {
  HWY_DYNAMIC_DISPATCH(GateInverse)(decay, T_zero, Tg);
}

HWY_EXPORT(ScaleColumns);
void scale_columns(const ChunkDecay& decay, const float* Tg, float* M) {
  HWY_DYNAMIC_DISPATCH(ScaleColumns)(decay, Tg, M);
}

HWY_EXPORT(Adjoint);
void chunk_adjoint(const ChunkDecay& decay, float scale, const ChunkAdjoint& a) {
  HWY_DYNAMIC_DISPATCH(Adjoint)(decay, scale, a);
}

HWY_EXPORT(ScaleRows);
void scale_rows(int64_t rows, int64_t width, const float* factor, Tile x, MutableTile y) {
  HWY_DYNAMIC_DISPATCH(ScaleRows)(rows, width, factor, x, y);
}

HWY_EXPORT(SubtractScaledRows);
void subtract_scaled_rows(int64_t rows, int64_t width, Tile v, const float* factor, Tile r,
                          MutableTile y) {
  HWY_DYNAMIC_DISPATCH(SubtractScaledRows)(rows, width, v, factor, r, y);
}

HWY_EXPORT(RowDots);
void row_dots(int64_t rows, int64_t width, Tile x, Tile y, float* sums) {
  HWY_DYNAMIC_DISPATCH(RowDots)(rows, width, x, y, sums);
}

HWY_EXPORT(ScaleRowsAndDot);
void scale_rows_and_dot(int64_t rows, int64_t width, const float* factor, Tile x, MutableTile y,
                        Tile z, float* sums) {
  HWY_DYNAMIC_DISPATCH(ScaleRowsAndDot)(rows, width, factor, x, y, z, sums);
}

HWY_EXPORT(UnitLowerInverse);
void unit_lower_inverse(int64_t n, const float* A, MutableTile T_zero) {
  HWY_DYNAMIC_DISPATCH(UnitLowerInverse)(n, A, T_zero);
}

}  // namespace kla::cpu
#endif
