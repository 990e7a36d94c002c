// What a block of mixer_prep_backward.cu works on: how a sequence is cut into tiles and blocks,
// what they share, the loads of a unit (4 tokens of a quad of channels), and the sums over rows.
#pragma once

#include <algorithm>

#include "kernels/cuda/mixer_shares.cuh"
#include "kernels/cuda/mixer_tokens.cuh"

namespace kla::KLA_BACKEND {

namespace {

constexpr int kRunTokens = 4, kMaxTile = 64, kMaxRows = kMaxTile + kRunTokens;
constexpr int kMaxThreads = 224;
enum { kQ, kK, kV, kParts };

int tile_tokens(int K) {
  return K <= 48 ? 64 : K <= 96 ? 32 : K <= 176 ? 16 : 8;
}
int threads_of(int K) {
  return std::max(128, ((tile_tokens(K) / kRunTokens + 1) * K / 4 + 31) / 32 * 32);
}

// How a sequence is cut: a function of the shape alone.
struct Cut {
  int tile, tiles, tiles_per_block, blocks;  // tokens of a tile; tiles and blocks of a sequence
  explicit Cut(const MixerDims& s)
      : tile(tile_tokens(s.K)), tiles(static_cast<int>((s.T + tile - 1) / tile)) {
    constexpr int64_t kEnough = 1024, kMostTiles = 8;  // blocks that keep any GPU busy
    const int64_t all = static_cast<int64_t>(s.B) * s.H * tiles;
    tiles_per_block = static_cast<int>(std::clamp<int64_t>(all / kEnough, 1, kMostTiles));
    blocks = (tiles + tiles_per_block - 1) / tiles_per_block;
  }
};

template <class T, bool kAligned>
struct Stream {
  ConvChannels<T, kAligned> conv;
  const T* dy;  // [B,T,H,width]
  int64_t dy_stride;
  T* dx;  // [B,T,H*width]
  int64_t dx_stride;
};

template <class T, bool kAligned>
struct Backward {
  MixerDims s;
  Stream<T, kAligned> streams[kParts];
  DocumentMap documents;
  GateArguments gates;
  LogitColumns a, b, da, db;
  const float *dbeta, *dg;
  int64_t dbeta_stride, dg_stride;
  Cut cut;
  float* shares;  // [B, blocks, H, Share::floats()]

  Backward(const MixerPrepBackward& x, float* scratch)
      : s(x.in),
        streams{{{x.in.q, x.in, 0, x.w.q_conv, s.H},
                 pointer<T>(x.dq_hat),
                 x.dq_hat.stride,
                 pointer<T>(x.dq),
                 x.dq.stride},
                {{x.in.k, x.in, s.H * s.K, x.w.k_conv, s.H},
                 pointer<T>(x.dk_hat),
                 x.dk_hat.stride,
                 pointer<T>(x.dk),
                 x.dk.stride},
                {{x.in.v, x.in, 2 * s.H * s.K, x.w.v_conv, s.H},
                 pointer<T>(x.dv_hat),
                 x.dv_hat.stride,
                 pointer<T>(x.dv),
                 x.dv.stride}},
        documents(x.in, s.T),
        gates(x.w, x.options),
        a(x.in.a),
        b(x.in.b),
        da(x.da),
        db(x.db),
        dbeta(pointer<float>(x.dbeta)),
        dg(pointer<float>(x.dg)),
        dbeta_stride(x.dbeta.stride),
        dg_stride(x.dg.stride),
        cut(s),
        shares(scratch) {}
};

// What the threads of a block share; rows are the tokens of a tile and its halo.
struct TileShared {
  float *n, *along;      // [kParts][kMaxRows] sums of squares and of y.dy
  float *top, *scale;    // [2][kMaxRows] of soft-maxed q and k: maximum, 1 / sum
  float *alpha, *gamma;  // [kParts][kMaxRows]
  float* beyond;         // [kMaxRows] what is added to dc per unit of c, soft-maxed keys
  float* scalars;        // [3 warps][kScalars]
  uint32_t* starts;      // [kStartWords]
  int64_t* found;        // [warps]
  float* value_along;    // [quads][rows] y.dy of v
  float* work;           // partial sums of rows; or dc of units' first tokens, then dw of units

  static constexpr int kRowFloats = (4 * kParts + 4 + 1) * kMaxRows + 3 * kScalars;
  static int work_floats(int K, int tile) {
    const int runs = tile / kRunTokens + 1, quads = K / 4;
    return std::max(4 * quads * (tile + kRunTokens),
                    runs * 3 * quads * 4 + (runs - 1) * quads * 16);
  }
  static size_t bytes(int K, int tile) {
    return SharedSize()
        .array<float>(kRowFloats)
        .array<uint32_t>(kStartWords)
        .array<int64_t>(kMaxThreads / 32)
        .array<float>(K / 4 * (tile + kRunTokens))
        .array<float>(work_floats(K, tile))
        .bytes();
  }
  __device__ explicit TileShared(int K, int tile) {
    SharedMemory shared;
    n = shared.array<float>(kRowFloats);
    along = n + kParts * kMaxRows;
    alpha = along + kParts * kMaxRows;
    gamma = alpha + kParts * kMaxRows;
    top = gamma + kParts * kMaxRows;
    scale = top + 2 * kMaxRows;
    beyond = scale + 2 * kMaxRows;
    scalars = beyond + kMaxRows;
    starts = shared.array<uint32_t>(kStartWords);
    found = shared.array<int64_t>(kMaxThreads / 32);
    const int runs = tile / kRunTokens + 1, quads = K / 4;
    const int sums = 4 * quads * (tile + kRunTokens);
    const int units = runs * 3 * quads * 4 + (runs - 1) * quads * 16;
    value_along = shared.array<float>(quads * (tile + kRunTokens));
    work = shared.array<float>(sums > units ? sums : units);
  }
};

// Where a thread works in a tile: its unit is the same in every part, but for the first quad.
struct Place {
  int b, h, tile, quads;  // quads of K: as many channels a pass takes
  int run, quad;
  bool active, owner;  // owner: not of the halo
  int64_t first;       // token of the tile's row 0
  bool first_tile;     // of this block
  float* share;

  __device__ int rows() const { return tile + kRunTokens; }
  __device__ RunPlace run_place(int run_, int quad_, int64_t T, const uint32_t* starts) const {
    const int t = run_ * kRunTokens;
    return {b, h, 4 * quad_, first + t, T, starts_around(starts, t)};
  }
};

// ---- A unit ------------------------------------------------------------------------------------

struct Activated {
  Quad y, slope;
};

__device__ inline Activated activate(const Quad& c, bool silu) {
  Activated a;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const float s = sigmoid_fast(c[e]), y = c[e] * s;
    a.y[e] = silu ? y : c[e];
    a.slope[e] = silu ? s + y * (1 - s) : 1.0f;
  }
  return a;
}

template <class T>
struct UnitData {
  RawRun<T, kRunTokens> raw;
  PackedQuad<T> dy[kRunTokens];
  Filter filter;
  bool silu;
};

template <bool kPlain, class T, bool kAligned>
__device__ void load_unit(UnitData<T>& u, const Backward<T, kAligned>& p, int part,
                          const RunPlace& place) {
  const Stream<T, kAligned>& x = p.streams[part];
  u.silu = kPlain || part == kV || p.gates.silu_on_keys();
  load_run(u.raw, x.conv, place);
  const T* dy =
      x.dy + ((place.b * p.s.T + place.t) * p.s.H + place.h) * x.dy_stride + place.channel;
  const int step = p.s.H * static_cast<int>(x.dy_stride);
#pragma unroll
  for (int i = 0; i < kRunTokens; ++i) {
    u.dy[i] = {};
    if (place.t + i < p.s.T) u.dy[i] = load_quad<kAligned>(dy + i * step);
  }
  u.filter = load_filter(x.conv, place);
}

__device__ inline float sum_of(const Quad& x, const Quad& y) {
  return (x[0] * y[0] + x[1] * y[1]) + (x[2] * y[2] + x[3] * y[3]);
}

// ---- Sums over rows ----------------------------------------------------------------------------

// Adds (or takes the maximum of) the `quads` columns of a table [quads][rows].
template <bool kMaximum>
__device__ float sum_column(const float* table, int quads, int rows, int row) {
  float sum = table[row];
  for (int i = 1; i < quads; ++i) {
    const float x = table[i * rows + row];
    sum = kMaximum ? fmaxf(sum, x) : sum + x;
  }
  return sum;
}

// two(y, dy, c, row) gives two numbers per row and quad of q and k; their totals go to `first` and
// `second`, [2][kMaxRows]. Contains two barriers.
template <bool kPlain, bool kMaximum, class T, bool kAligned, class Two>
__device__ void measure_rows(const Backward<T, kAligned>& p, const Place& at, const TileShared& m,
                             float* first, float* second, Two&& two) {
  const int rows = at.rows(), table = at.quads * rows;
#pragma unroll 1
  for (int part = kQ; part <= kK && at.active; ++part) {
    UnitData<T> u;
    const RunPlace place = at.run_place(at.run, at.quad, p.s.T, m.starts);
    load_unit<kPlain>(u, p, part, place);
    Quad x, y;
    convolve(u.raw, u.filter, place.starts, [&](int i, const Quad& c) {
      const float2 values =
          two(part, at.run * kRunTokens + i, activate(c, u.silu).y, unpack(u.dy[i]));
      x[i] = values.x;
      y[i] = values.y;
    });
    float* to = m.work + 2 * part * table + at.quad * rows + at.run * kRunTokens;
    store_quad<true>(to, x);
    store_quad<true>(to + table, y);
  }
  __syncthreads();
  const int threads = static_cast<int>(blockDim.x);
  for (int i = static_cast<int>(threadIdx.x); i < 2 * rows; i += threads) {
    const int part = i / rows, row = i % rows;
    const float* from = m.work + 2 * part * table;
    first[part * kMaxRows + row] = sum_column<kMaximum>(from, at.quads, rows, row);
    if (!kMaximum)
      second[part * kMaxRows + row] = sum_column<false>(from + table, at.quads, rows, row);
  }
  __syncthreads();
}

__device__ inline bool is_softmax(const GateArguments& gates, int part) {
  return part == kK ? gates.key == KeyMap::softmax : part == kQ && gates.query == QueryMap::softmax;
}

// Of soft-maxed rows: maximum, 1 / sum, and y.dy of the soft-maxed y.
template <class T, bool kAligned>
__device__ void measure_softmax(const Backward<T, kAligned>& p, const Place& at,
                                const TileShared& m) {
  measure_rows<false, true>(p, at, m, m.top, m.top, [](int, int, const Quad& y, const Quad&) {
    return float2{fmaxf(fmaxf(y[0], y[1]), fmaxf(y[2], y[3])), 0};
  });
  // gamma holds the sums for a moment: its values follow in row_factors.
  measure_rows<false, false>(p, at, m, m.scale, m.gamma,
                             [&](int part, int row, const Quad& y, const Quad& dy) {
                               Quad power;
                               for (int e = 0; e < 4; ++e)
                                 power[e] = expf(y[e] - m.top[part * kMaxRows + row]);
                               return float2{sum_of(power, {1, 1, 1, 1}), sum_of(power, dy)};
                             });
  for (int row = static_cast<int>(threadIdx.x); row < at.rows();
       row += static_cast<int>(blockDim.x))
    for (int part = kQ; part <= kK; ++part) {
      const int i = part * kMaxRows + row;
      m.scale[i] = 1 / m.scale[i];
      if (is_softmax(p.gates, part)) m.along[i] = m.gamma[i] * m.scale[i];
    }
  __syncthreads();
}

// n and along of v, a warp per run: only values by their own norm need them before they are
// applied.
template <class T, bool kAligned>
__device__ void measure_values(const Backward<T, kAligned>& p, const Place& at,
                               const TileShared& m) {
  const int warps = static_cast<int>(blockDim.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int run = static_cast<int>(threadIdx.x) / 32; run < at.rows() / kRunTokens; run += warps) {
    Quad n = {}, along = {};
    for (int quad = lane; quad < p.s.V / 4; quad += 32) {
      UnitData<T> u;
      const RunPlace place = at.run_place(run, quad, p.s.T, m.starts);
      load_unit<false>(u, p, kV, place);
      convolve(u.raw, u.filter, place.starts, [&](int i, const Quad& c) {
        const Quad y = activate(c, true).y;
        n[i] += sum_of(y, y);
        along[i] += sum_of(y, unpack(u.dy[i]));
      });
    }
#pragma unroll
    for (int i = 0; i < kRunTokens; ++i) {
      const float squares = group_sum(n[i], kWarp), dots = group_sum(along[i], kWarp);
      if (lane != 0) continue;
      m.n[kV * kMaxRows + run * kRunTokens + i] = squares;
      m.along[kV * kMaxRows + run * kRunTokens + i] = dots;
    }
  }
  __syncthreads();
}

}  // namespace

}  // namespace kla::KLA_BACKEND
