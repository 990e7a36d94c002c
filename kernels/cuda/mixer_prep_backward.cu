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
// block's row of scratch memory (mixer_shares.cuh).
#include "kernels/cuda/mixer_prep_tile.cuh"

namespace kla::KLA_BACKEND {

namespace {

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
  convolve(u.raw, u.filter, place.starts, [&](int i, const Quad& c) {
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
  T* to =
      x.dx + (place.b * place.T + place.t) * x.dx_stride + place.h * x.conv.width + place.channel;
  const int step = static_cast<int>(x.dx_stride);
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
    if (place.t + i < place.T) store_quad<kAligned>(to + i * step, dx);
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

// ---- Launch -----------------------------------------------------------------------------------

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
  add_shares(context, x, s, rows, shares);
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
