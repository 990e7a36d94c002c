// Backward of mixer_prep (kernels/README.md, "Mixer prep"): one block per head and run of tiles of
// a sequence. Convolution, SiLU and norms are recomputed from the raw inputs, in units of 4 tokens
// of a quad of channels:
//
//   1. measure: sums of squares and y.dy of the rows of q and k, which the norms' derivatives need.
//   2. apply v, k, q: dc = (alpha dy + gamma y) slope, with one alpha and gamma per row; dc of the
//      first three tokens of a unit goes through shared memory to the unit before it, which
//      convolves backwards with it. A tile has one more unit per quad, of three tokens that the
//      next tile owns. v comes first: its y.dy is part of the gradient of the key norm.
//
// Shares of the parameters' gradients: the sums over a tile's units are added, tile by tile, to the
// block's row of scratch memory, and a second kernel sums the rows in double, always in one order.
#include <algorithm>

#include "kernels/cuda/mixer_tokens.cuh"

namespace kla::KLA_BACKEND {

namespace {

constexpr int kRunTokens = 4, kMaxTile = 64, kMaxRows = kMaxTile + kRunTokens;
constexpr int kMaxThreads = 224;
enum { kQ, kK, kV, kParts };
enum { kBBias, kALog, kABias, kTheta, kScalars };

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

// A block's share of the gradients of its head: [K,4], [K,4], [V,4], [kScalars].
struct Share {
  int K, V;
  __device__ int conv(int part) const { return 4 * K * part; }
  KLA_HD int scalars() const { return 4 * (2 * K + V); }
  KLA_HD int floats() const { return scalars() + kScalars; }
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
#pragma unroll
  for (int i = 0; i < kRunTokens; ++i) {
    u.dy[i] = {};
    if (place.t + i < p.s.T) {
      const int64_t row = (place.b * p.s.T + place.t + i) * p.s.H + place.h;
      u.dy[i] = load_quad<kAligned>(x.dy + row * x.dy_stride + place.channel);
    }
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
    convolve(u.raw, u.filter, place.starts, [&](int i, const Quad& c, const Quad*) {
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
      convolve(u.raw, u.filter, place.starts, [&](int i, const Quad& c, const Quad*) {
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

// ---- Factors of rows ---------------------------------------------------------------------------

// alpha and gamma of q and v, alpha of k. Rows past the end get zeros.
template <class T, bool kAligned>
__device__ void row_factors(const Backward<T, kAligned>& p, const Place& at, const TileShared& m) {
  const int row = static_cast<int>(threadIdx.x);
  if (row >= at.rows()) return;
  const bool valid = at.first + row < p.s.T;
  const float unit_eps = static_cast<float>(kUnitEps);
  const auto set = [&](int part, float alpha, float gamma) {
    m.alpha[part * kMaxRows + row] = valid ? alpha : 0;
    m.gamma[part * kMaxRows + row] = valid ? gamma : 0;
  };
  const auto unit = [&](int part, float eps) {
    const float r = 1 / sqrtf(m.n[part * kMaxRows + row] + eps);
    set(part, r, -r * r * r * m.along[part * kMaxRows + row]);
  };
  if (p.gates.query == QueryMap::raw) set(kQ, 1, 0);
  if (p.gates.query == QueryMap::unit) unit(kQ, unit_eps);
  if (p.gates.query == QueryMap::softmax) set(kQ, 1, -m.along[row]);
  const float r = 1 / sqrtf(m.n[kK * kMaxRows + row] + p.gates.eps);
  set(kK, is_softmax(p.gates, kK) ? 1 : r, 0);
  if (p.gates.value == ValueMap::raw) set(kV, 1, 0);
  if (p.gates.value == ValueMap::over_key_norm) set(kV, r, 0);
  if (p.gates.value == ValueMap::unit) unit(kV, unit_eps);
}

// The gradient of the squared key norm, with it gamma of k; da, db and the scalars' shares.
template <class T, bool kAligned>
__device__ void gates_backward(const Backward<T, kAligned>& p, const Place& at, const TileShared& m,
                               int64_t last_start) {
  const int row = static_cast<int>(threadIdx.x), k_row = kK * kMaxRows + row;
  float sums[kScalars] = {};
  if (row < at.rows()) m.beyond[row] = m.gamma[k_row] = 0;
  if (row < at.rows() && at.first + row < p.s.T) {
    const int64_t token = at.b * p.s.T + at.first + row;
    const float n = m.n[k_row], r = 1 / sqrtf(n + p.gates.eps);
    const HeadGates head(p.gates, at.h);
    const int64_t position =
        position_of(m.starts, at.first, row, last_start, p.documents.before(at.b));
    const TokenStep step(p.gates, head, p.b.load(token, at.h), n, static_cast<float>(position));
    const Decay decay = log_decay(p.gates, head, p.a.load(token, at.h), step);
    const float dbeta = p.dbeta[token * p.dbeta_stride + at.h];
    const float dg = p.dg[token * p.dg_stride + at.h];

    float twice_dn = 2 * dbeta * step.gain.d_n;
    if (p.gates.value == ValueMap::over_key_norm)
      twice_dn -= r * r * r * m.along[kV * kMaxRows + row];
    if (is_softmax(p.gates, kK)) {
      m.gamma[k_row] = -m.along[k_row];
      m.beyond[row] = twice_dn;
    } else {
      m.gamma[k_row] = twice_dn - r * r * r * m.along[k_row];
    }
    if (row < at.tile) {
      const float da = dg * decay.d_a;
      const float db = dbeta * step.gain.d_eta * step.eta * step.kept + dg * decay.d_b;
      p.da.store(token, at.h, da);
      p.db.store(token, at.h, db);
      sums[kBBias] = db;
      sums[kALog] = dg * decay.g;
      sums[kABias] = da;
      sums[kTheta] = dbeta * step.gain.d_scalar;
    }
  }
  if (row >= 96) return;  // whole warps
#pragma unroll
  for (int i = 0; i < kScalars; ++i) {
    const float sum = group_sum(sums[i], kWarp);
    if (row % 32 == 0) m.scalars[row / 32 * kScalars + i] = sum;
  }
}

// ---- Applying the factors ----------------------------------------------------------------------

// dc of a unit's tokens.
template <bool kPlain, class T, bool kAligned>
__device__ void unit_backward(Quad (&dc)[kRunTokens + kTail], Quad& along,
                              const Backward<T, kAligned>& p, int part, const RunPlace& place,
                              const Place& at, const TileShared& m) {
  UnitData<T> u;
  load_unit<kPlain>(u, p, part, place);
  const int first_row = part * kMaxRows + at.run * kRunTokens;
  convolve(u.raw, u.filter, place.starts, [&](int i, const Quad& c, const Quad*) {
    const Activated x = activate(c, u.silu);
    const Quad dy = unpack(u.dy[i]);
    const float alpha = m.alpha[first_row + i], gamma = m.gamma[first_row + i];
    along[i] += sum_of(x.y, dy);
    if (!kPlain && is_softmax(p.gates, part)) {
      const float beyond = part == kK ? m.beyond[at.run * kRunTokens + i] : 0;
      for (int e = 0; e < 4; ++e) {
        const float y = expf(x.y[e] - m.top[first_row + i]) * m.scale[first_row + i];
        dc[i][e] = (y * (alpha * dy[e] + gamma) + beyond * x.y[e]) * x.slope[e];
      }
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e) dc[i][e] = (alpha * dy[e] + gamma * x.y[e]) * x.slope[e];
    }
  });
}

// dw_j = sum_t dc_t x_{t-3+j} over the unit's tokens, channel by channel, each a quad of taps.
template <class T>
__device__ void unit_filter_gradient(float* to, int stride, const Quad* dc,
                                     const RawRun<T, kRunTokens>& raw, uint32_t starts) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    Quad dw = {}, taps = {{0, raw.window[0][e], raw.window[1][e], raw.window[2][e]}};
#pragma unroll
    for (int i = 0; i < kRunTokens; ++i) {
      taps = {{taps[1], taps[2], taps[3], unpack(raw.x[i])[e]}};
      if (starts >> (kTail + i) & 1) taps[0] = taps[1] = taps[2] = 0;
#pragma unroll
      for (int j = 0; j < kConvWidth; ++j) dw[j] += dc[i][e] * taps[j];
    }
    store_quad<true>(to + e * stride, dw);
  }
}

// dx_t = sum_a w_{3-a} dc_{t+a}, where no document starts in (t, t + a].
template <class T, bool kAligned>
__device__ void store_dx(const Stream<T, kAligned>& x, const Quad (&dc)[kRunTokens + kTail],
                         const RunPlace& place) {
  const Filter w = load_filter(x.conv, place);
#pragma unroll
  for (int i = 0; i < kRunTokens; ++i) {
    Quad dx = {};
    bool same = true;
#pragma unroll
    for (int a = 0; a < kConvWidth; ++a) {
      if (a > 0) same = same && !(place.starts >> (kTail + i + a) & 1);
      if (!same) continue;
#pragma unroll
      for (int e = 0; e < 4; ++e) dx[e] += w.channel[e][kTail - a] * dc[i + a][e];
    }
    if (place.t + i < place.T)
      store_quad<kAligned>(x.dx + (place.b * place.T + place.t + i) * x.dx_stride +
                               place.h * x.conv.width + place.channel,
                           dx);
  }
}

// Adds the dw of a pass, summed over its units, to the block's share.
__device__ inline void add_to_share(const Place& at, const float* dw, int owners, float* share,
                                    int quads) {
  const int threads = static_cast<int>(blockDim.x), stride = at.quads * 16;
  for (int i = static_cast<int>(threadIdx.x); i < stride; i += threads) {
    const int e = i / (4 * at.quads), quad = i / 4 % at.quads, tap = i % 4;
    if (quad >= quads) continue;
    float sum = 0;
    for (int run = 0; run < owners; ++run) sum += dw[run * stride + i];
    float& to = share[(4 * quad + e) * kConvWidth + tap];
    to = at.first_tile ? sum : to + sum;
  }
}

// One pass: `at.quads` quads of a part, from `first_quad`. Of v, the units' y.dy are added to their
// place in the table `along`, [quads][rows]. Contains two barriers.
template <bool kPlain, class T, bool kAligned>
__device__ void apply(const Backward<T, kAligned>& p, int part, int first_quad, const Place& at,
                      const TileShared& m) {
  const Stream<T, kAligned>& x = p.streams[part];
  const int runs = at.tile / kRunTokens + 1, quads = x.conv.width / 4 - first_quad;
  const bool active = at.active && at.quad < quads;
  float *halo = m.work, *dw_work = m.work + runs * kTail * at.quads * 4;
  const RunPlace place = at.run_place(at.run, first_quad + at.quad, p.s.T, m.starts);
  Quad dc[kRunTokens + kTail];
  if (active) {
    Quad along = {};
    unit_backward<kPlain>(dc, along, p, part, place, at, m);
    if (part == kV) {
      float* sum = m.value_along + at.quad * at.rows() + at.run * kRunTokens;
      if (first_quad > 0) {
        const Quad before = unpack(load_quad<true>(sum));
        for (int i = 0; i < kRunTokens; ++i) along[i] += before[i];
      }
      store_quad<true>(sum, along);
    }
#pragma unroll
    for (int i = 0; i < kTail; ++i)
      store_quad<true>(halo + ((at.run * kTail + i) * at.quads + at.quad) * 4, dc[i]);
  }
  __syncthreads();
  if (active && at.owner) {
#pragma unroll
    for (int i = 0; i < kTail; ++i)
      dc[kRunTokens + i] =
          unpack(load_quad<true>(halo + (((at.run + 1) * kTail + i) * at.quads + at.quad) * 4));
    store_dx(x, dc, place);
    // Raw inputs again, from the cache: kept, they would cost the first half its registers.
    RawRun<T, kRunTokens> raw;
    load_run(raw, x.conv, place);
    unit_filter_gradient(dw_work + (at.run * 4 * at.quads + at.quad) * 4, at.quads * 4, dc, raw,
                         place.starts);
  }
  __syncthreads();
  const Share layout{p.s.K, p.s.V};
  add_to_share(at, dw_work, runs - 1, at.share + layout.conv(part) + first_quad * 16, quads);
}

template <class T, bool kAligned, bool kPlain>
__device__ void tile_backward(const Backward<T, kAligned>& p, const Place& at,
                              const TileShared& m) {
  if (threadIdx.x < 32) find_starts(p.documents, at.b, at.first, m.starts);
  __syncthreads();
  measure_rows<kPlain, false>(p, at, m, m.n, m.along, [](int, int, const Quad& y, const Quad& dy) {
    return float2{sum_of(y, y), sum_of(y, dy)};
  });
  if constexpr (!kPlain) {
    if (is_softmax(p.gates, kQ) || is_softmax(p.gates, kK)) measure_softmax(p, at, m);
    if (p.gates.value == ValueMap::unit) measure_values(p, at, m);
  }
  row_factors(p, at, m);
  __syncthreads();

#pragma unroll 1
  for (int quad = 0; quad < p.s.V / 4; quad += at.quads) apply<kPlain>(p, kV, quad, at, m);
  const int row = static_cast<int>(threadIdx.x);
  const int used = p.s.V / 4 < at.quads ? p.s.V / 4 : at.quads;  // columns of the table
  if (row < at.rows())
    m.along[kV * kMaxRows + row] = sum_column<false>(m.value_along, used, at.rows(), row);
  gates_backward(p, at, m, last_start_before(p.documents, at.b, at.first, m.found));
  __syncthreads();
  if (row < kScalars) {
    float& to = at.share[Share{p.s.K, p.s.V}.scalars() + row];
    const float sum = m.scalars[row] + m.scalars[kScalars + row] + m.scalars[2 * kScalars + row];
    to = at.first_tile ? sum : to + sum;
  }
#pragma unroll 1
  for (int part = kK; part >= kQ; --part) apply<kPlain>(p, part, 0, at, m);
}

// kPlain: neither softmax nor values by their own norm, whose code would cost the others registers.
template <class T, bool kAligned, bool kPlain>
__global__ void __launch_bounds__(kMaxThreads, kPlain ? 2 : 1)
    prep_backward_kernel(const __grid_constant__ Backward<T, kAligned> p) {
  const TileShared m(p.s.K, p.cut.tile);
  const int block = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int runs = p.cut.tile / kRunTokens + 1, sequence_block = block / p.s.H % p.cut.blocks;
  Place at;
  at.h = block % p.s.H;
  at.b = block / (p.s.H * p.cut.blocks);
  at.tile = p.cut.tile;
  at.quads = p.s.K / 4;
  at.run = thread / at.quads;
  at.quad = thread % at.quads;
  at.active = at.run < runs;
  at.owner = at.run < runs - 1;
  at.share = p.shares + static_cast<int64_t>(block) * Share{p.s.K, p.s.V}.floats();
  const int from = sequence_block * p.cut.tiles_per_block;
  const int to = from + p.cut.tiles_per_block;
#pragma unroll 1
  for (int tile = from; tile < to && tile < p.cut.tiles; ++tile) {
    at.first = static_cast<int64_t>(tile) * at.tile;
    at.first_tile = tile == from;
    tile_backward<T, kAligned, kPlain>(p, at, m);
  }
}

// ---- Sums over blocks --------------------------------------------------------------------------

struct Totals {
  int H, rows;  // shares of each head
  Share share;
  const float* shares;  // [rows, H, share.floats()]
  float *q_conv, *k_conv, *v_conv, *b_bias, *a_log, *a_bias, *theta;
  const float* logit;  // theta itself
  bool shared_theta;   // one for all heads

  // Where column `i` of head h is added to, or null.
  __device__ float* target(int h, int i) const {
    const int keys = 4 * share.K, values = 4 * share.V;
    if (i < keys) return q_conv + h * keys + i;
    if (i < 2 * keys) return k_conv + h * keys + i - keys;
    if (i < share.scalars()) return v_conv + h * values + i - 2 * keys;
    switch (i - share.scalars()) {
      case kBBias:
        return b_bias ? b_bias + h : nullptr;
      case kALog:
        return a_log ? a_log + h : nullptr;
      case kABias:
        return a_bias ? a_bias + h : nullptr;
      default:
        if (!theta || (shared_theta && h > 0)) return nullptr;
        return theta + (shared_theta ? 0 : h);
    }
  }
};

constexpr int kSumColumns = 32, kSumRows = 8;

// Grid (columns / 32, H), 8 rows of threads: each adds every eighth share, then the eight are
// added.
__global__ void sum_shares_kernel(const __grid_constant__ Totals p) {
  SharedMemory shared;
  double* sums = shared.array<double>(kSumColumns * kSumRows);
  const int column = static_cast<int>(threadIdx.x) % kSumColumns;
  const int row = static_cast<int>(threadIdx.x) / kSumColumns, h = static_cast<int>(blockIdx.y);
  const int i = static_cast<int>(blockIdx.x) * kSumColumns + column, width = p.share.floats();
  const bool is_theta = i == p.share.scalars() + kTheta, all_heads = is_theta && p.shared_theta;
  double sum = 0;
  if (i < width) {
    const int count = all_heads ? p.rows * p.H : p.rows;
    const int64_t stride = all_heads ? width : static_cast<int64_t>(p.H) * width;
    const float* from = p.shares + (all_heads ? 0 : static_cast<int64_t>(h) * width) + i;
    for (int share = row; share < count; share += kSumRows) sum += from[share * stride];
  }
  sums[row * kSumColumns + column] = sum;
  __syncthreads();
  if (row > 0 || i >= width) return;
  for (int other = 1; other < kSumRows; ++other) sum += sums[other * kSumColumns + column];
  float* to = p.target(h, i);
  if (!to) return;
  if (is_theta) sum *= sigmoid(p.logit[p.shared_theta ? 0 : h]);  // of softplus
  *to += static_cast<float>(sum);
}

float* dense_pointer(const View& view) {
  KLA_CHECK(view.empty() || view.dense(), view.describe());
  return pointer<float>(view);
}

void sum_shares(const Context& context, const MixerPrepBackward& x, const MixerDims& s, int rows,
                const float* shares) {
  const RuleInfo& rule = rule_info(x.options.rule);
  const bool mamba = x.options.decay == DecayGate::dual_mamba;
  const Totals totals{s.H,
                      rows,
                      {s.K, s.V},
                      shares,
                      dense_pointer(x.dw.q_conv),
                      dense_pointer(x.dw.k_conv),
                      dense_pointer(x.dw.v_conv),
                      pointer<float>(x.dw.b_bias),
                      mamba ? pointer<float>(x.dw.a_log) : nullptr,
                      pointer<float>(x.dw.a_bias),
                      rule.scalar != LearnedScalar::none ? pointer<float>(x.dw.theta) : nullptr,
                      pointer<float>(x.w.theta),
                      rule.scalar == LearnedScalar::per_layer};
  const auto columns =
      static_cast<unsigned>((totals.share.floats() + kSumColumns - 1) / kSumColumns);
  launch(context, sum_shares_kernel,
         {dim3(columns, static_cast<unsigned>(s.H)), kSumColumns * kSumRows,
          SharedSize().array<double>(kSumColumns * kSumRows).bytes()},
         totals);
}

template <class T, bool kAligned, bool kPlain>
void launch_backward(const Context& context, const MixerPrepBackward& x) {
  const MixerDims s(x.in);
  const Cut cut(s);
  const int rows = s.B * cut.blocks;
  const int64_t blocks = static_cast<int64_t>(rows) * s.H;
  ArenaScope scope(*context.scratch);
  float* shares = context.scratch->allocate<float>(blocks * Share{s.K, s.V}.floats());
  if (blocks == 0) return;
  launch(context, prep_backward_kernel<T, kAligned, kPlain>,
         {dim3(static_cast<unsigned>(blocks)), static_cast<unsigned>(threads_of(s.K)),
          TileShared::bytes(s.K, cut.tile)},
         Backward<T, kAligned>(x, shares));
  sum_shares(context, x, s, rows, shares);
}

void backward(Context& context, const MixerPrepBackward& x) {
  const bool aligned = quads_aligned({x.in.q, x.in.k, x.in.v, x.w.q_conv, x.w.k_conv, x.w.v_conv,
                                      x.dq, x.dk, x.dv, x.dq_hat, x.dk_hat, x.dv_hat});
  const RuleInfo& rule = rule_info(x.options.rule);
  const bool plain = rule.query != QueryMap::softmax && rule.key != KeyMap::softmax &&
                     rule.value != ValueMap::unit;
  visit_compute(context, [&]<class T>(T) {
    if (!aligned) return launch_backward<T, false, false>(context, x);
    plain ? launch_backward<T, true, true>(context, x)
          : launch_backward<T, true, false>(context, x);
  });
}

KLA_OP(mixer_prep_backward, KLA_BACKEND, backward);

}  // namespace

}  // namespace kla::KLA_BACKEND
