// From the projections of a mixer to what the scan needs (kernels/README.md, "Mixer prep"): one
// block per sequence, chunk of 64 tokens and head.
//
//   1. q and k: a thread convolves a run of 4 tokens of a quad of channels in registers, keeps the
//      activated values there while the block sums their squares, then scales, rounds and stores
//      them. k_hat stays in shared memory, as rounded.
//   2. gates: a thread per token.
//   3. v, in quads and runs of its own, scaled by the key norm at once; any number of channels.
//   4. A = beta_i k_i.k_j from the rounded keys (tensor cores in bf16, FMA in f32), its inverse,
//      T_zero.
//
// mixer_progress.cu then advances tail and position, which may lie in place of the old ones.
#include <algorithm>

#include "kernels/cuda/mixer_tokens.cuh"
#include "kernels/cuda/unit_lower_inverse.cuh"

namespace kla::KLA_BACKEND {

namespace {

constexpr int kC = static_cast<int>(kChunk);
constexpr int kRunTokens = 4, kRuns = kC / kRunTokens;
constexpr int kMaxThreads = 384;
constexpr int kSumStride = kC + 4;  // floats between the partial sums of two quads

// Runs that q and k take at once, so that their values fit the registers of one block.
int runs_at_once(int K) {
  return K <= 48 ? 16 : K <= 96 ? 8 : K <= 192 ? 4 : 2;
}
int threads_of(int K) {
  return std::max(128, (K / 2 * runs_at_once(K) + 31) / 32 * 32);
}

template <class T>
constexpr int key_stride(int K) {  // of k_hat in shared memory: skewed by 16 bytes
  return K + 16 / static_cast<int>(sizeof(T));
}

template <class T, bool kAligned>
struct Output {  // [B,T,H,width]
  T* data;
  int64_t stride;
  explicit Output(const View& view) : data(pointer<T>(view)), stride(view.stride) {}
  // Token t of sequence b, head h.
  __device__ T* at(const MixerDims& s, int b, int64_t t, int h, int channel) const {
    return data + ((b * s.T + t) * s.H + h) * stride + channel;
  }
};

template <class T, bool kAligned>
struct Forward {
  MixerDims s;
  ConvChannels<T, kAligned> q, k, v;
  DocumentMap documents;
  GateArguments gates;
  LogitColumns a, b;
  Output<T, kAligned> q_hat, k_hat, v_hat;
  float *beta, *g;
  int64_t beta_stride, g_stride;
  T* T_zero;
  int64_t T_stride;
  int chunks;  // of a sequence
  int runs;    // of q and k at once

  explicit Forward(const MixerPrepForward& x)
      : s(x.in),
        q(x.in.q, x.in, 0, x.w.q_conv, s.H),
        k(x.in.k, x.in, s.H * s.K, x.w.k_conv, s.H),
        v(x.in.v, x.in, 2 * s.H * s.K, x.w.v_conv, s.H),
        documents(x.in, s.T),
        gates(x.w, x.options),
        a(x.in.a),
        b(x.in.b),
        q_hat(x.q_hat),
        k_hat(x.k_hat),
        v_hat(x.v_hat),
        beta(pointer<float>(x.beta)),
        g(pointer<float>(x.g)),
        beta_stride(x.beta.stride),
        g_stride(x.g.stride),
        T_zero(pointer<T>(x.T_zero)),
        T_stride(x.T_zero.stride),
        chunks(static_cast<int>(chunk_count(s.T))),
        runs(runs_at_once(s.K)) {
    KLA_CHECK(x.T_zero.empty() || x.T_zero.dim(4) == kChunk,
              "the CUDA kernels take chunks of 64, not " + x.T_zero.describe());
  }
};

// What the threads of a block share.
template <class T>
struct ChunkShared {
  float* A;                      // [64, kInverseStride]; before that, with T, sums of q and k
  float* T_zero;                 // [64, kInverseStride]
  float *squares, *top, *scale;  // [2][64] of q and k
  float *value_scale, *beta;     // [64]
  uint32_t* starts;              // [kStartWords]
  int64_t* found;                // [warps]
  T* k_hat;                      // [64, key_stride]; last, so that the others lie at fixed places

  static constexpr int kMatrices = 2 * kC * kInverseStride;
  static_assert(kMaxKeyDim / 2 * kSumStride <= kMatrices);

  static size_t bytes(int K) {
    SharedSize size;
    size.array<float>(kMatrices);
    size.array<float>(8 * kC);
    size.array<uint32_t>(kStartWords);
    size.array<int64_t>(kMaxThreads / 32);
    size.array<T>(kC * key_stride<T>(K));
    return size.bytes();
  }
  __device__ explicit ChunkShared(int K) {
    SharedMemory shared;
    A = shared.array<float>(kMatrices);
    T_zero = A + kC * kInverseStride;
    squares = shared.array<float>(8 * kC);
    top = squares + 2 * kC;
    scale = top + 2 * kC;
    value_scale = scale + 2 * kC;
    beta = value_scale + kC;
    starts = shared.array<uint32_t>(kStartWords);
    found = shared.array<int64_t>(kMaxThreads / 32);
    k_hat = shared.array<T>(kC * key_stride<T>(K));
  }
};

struct Chunk {
  int b, h, rows;  // tokens of the chunk
  int64_t n, first;
};

// ---- q and k -----------------------------------------------------------------------------------

// A thread's share of q or k in one pass.
struct KeyUnit {
  bool active, is_key;
  int run, quad;  // quad counts q's quads, then k's
  Quad y[kRunTokens];
};

// Sums `value` of each token of the units (or takes the maximum) over the quads of q and of k:
// finish(row, sum) runs once for row = token and once for row = 64 + token, for the tokens of the
// pass. Contains two barriers.
template <bool kMaximum, class Value, class Finish>
__device__ void reduce_rows(const KeyUnit& u, float* partial, int quads, int first_token,
                            int tokens, Value&& value, Finish&& finish) {
  if (u.active) {
    static_assert(kRunTokens == 4);
    store_quad<true>(partial + u.quad * kSumStride + u.run * kRunTokens,
                     {{value(u.y[0]), value(u.y[1]), value(u.y[2]), value(u.y[3])}});
  }
  __syncthreads();
  const int threads = static_cast<int>(blockDim.x);
  for (int row = static_cast<int>(threadIdx.x); row < 2 * tokens; row += threads) {
    const int part = row / tokens, token = first_token + row % tokens;
    const float* from = partial + part * quads * kSumStride + token;
    float sum = from[0];
    for (int i = 1; i < quads; ++i) {
      const float x = from[i * kSumStride];
      sum = kMaximum ? fmaxf(sum, x) : sum + x;
    }
    finish(part * kC + token, sum);
  }
  __syncthreads();
}

template <bool kPlain, class T, bool kAligned>
__device__ void convolve_unit(KeyUnit& u, const Forward<T, kAligned>& p, const Chunk& c,
                              const uint32_t* starts) {
  const ConvChannels<T, kAligned> channels = u.is_key ? p.k : p.q;
  const int t = u.run * kRunTokens, quads = p.s.K / 4;
  const RunPlace place{c.b, c.h, u.quad % quads * 4, c.first + t, p.s.T, starts_around(starts, t)};
  RawRun<T, kRunTokens> raw;
  load_run(raw, channels, place);
  const Filter filter = load_filter(channels, place);
  const bool silu = kPlain || p.gates.silu_on_keys();
  convolve(raw, filter, place.starts, [&](int i, const Quad& conv) {
#pragma unroll
    for (int e = 0; e < 4; ++e) u.y[i][e] = silu ? conv[e] * sigmoid_fast(conv[e]) : conv[e];
  });
}

// What multiplies a row of q (of k: is_key) whose squares sum to n.
__device__ inline float row_scale(const GateArguments& gates, bool is_key, float n) {
  if (is_key) return 1 / sqrtf(n + gates.eps);
  return gates.query == QueryMap::unit ? 1 / sqrtf(n + static_cast<float>(kUnitEps)) : 1.0f;
}

// Where q or k is soft-maxed, y becomes e^(y - max) and the scale 1 / sum.
template <class T, bool kAligned>
__device__ void softmax_units(KeyUnit& u, const Forward<T, kAligned>& p, const ChunkShared<T>& m,
                              int first_token, int tokens) {
  const int quads = p.s.K / 4;
  const auto softmax = [&](bool is_key) {
    return is_key ? p.gates.key == KeyMap::softmax : p.gates.query == QueryMap::softmax;
  };
  reduce_rows<true>(
      u, m.A, quads, first_token, tokens,
      [](const Quad& y) { return fmaxf(fmaxf(y[0], y[1]), fmaxf(y[2], y[3])); },
      [&](int row, float top) { m.top[row] = top; });
  if (u.active && softmax(u.is_key))
    for (int i = 0; i < kRunTokens; ++i)
      for (int e = 0; e < 4; ++e)
        u.y[i][e] = expf(u.y[i][e] - m.top[u.is_key * kC + u.run * kRunTokens + i]);
  reduce_rows<false>(
      u, m.A, quads, first_token, tokens,
      [](const Quad& y) { return (y[0] + y[1]) + (y[2] + y[3]); },
      [&](int row, float sum) {
        if (softmax(row >= kC)) m.scale[row] = 1 / sum;
      });
}

template <class T, bool kAligned>
__device__ void store_unit(const KeyUnit& u, const Forward<T, kAligned>& p, const Chunk& c,
                           const ChunkShared<T>& m) {
  const Output<T, kAligned>& out = u.is_key ? p.k_hat : p.q_hat;
  const int channel = u.quad % (p.s.K / 4) * 4, step = p.s.H * static_cast<int>(out.stride);
  T* to = out.at(p.s, c.b, c.first + u.run * kRunTokens, c.h, channel);
#pragma unroll
  for (int i = 0; i < kRunTokens; ++i) {
    const int token = u.run * kRunTokens + i;
    const float scale = m.scale[u.is_key * kC + token];
    Quad y;
    for (int e = 0; e < 4; ++e) y[e] = u.y[i][e] * scale;
    if (token < c.rows) store_quad<kAligned>(to + i * step, y);
    if (u.is_key) store_quad<true>(m.k_hat + token * key_stride<T>(p.s.K) + channel, y);
  }
}

template <bool kPlain, class T, bool kAligned>
__device__ void queries_and_keys(const Forward<T, kAligned>& p, const Chunk& c,
                                 const ChunkShared<T>& m) {
  const int quads = p.s.K / 4, thread = static_cast<int>(threadIdx.x);
#pragma unroll 1
  for (int first_run = 0; first_run < kRuns; first_run += p.runs) {
    KeyUnit u;
    u.run = first_run + thread / (2 * quads);
    u.quad = thread % (2 * quads);
    u.is_key = u.quad >= quads;
    u.active = u.run < first_run + p.runs;
    if (u.active) convolve_unit<kPlain>(u, p, c, m.starts);
    const int first_token = first_run * kRunTokens, tokens = p.runs * kRunTokens;
    reduce_rows<false>(
        u, m.A, quads, first_token, tokens,
        [](const Quad& y) { return (y[0] * y[0] + y[1] * y[1]) + (y[2] * y[2] + y[3] * y[3]); },
        [&](int row, float sum) {
          m.squares[row] = sum;
          m.scale[row] = row_scale(p.gates, row >= kC, sum);
        });
    if constexpr (!kPlain) {
      if (p.gates.key == KeyMap::softmax || p.gates.query == QueryMap::softmax)
        softmax_units(u, p, m, first_token, tokens);
    }
    if (u.active) store_unit(u, p, c, m);
  }
}

// ---- Gates and values --------------------------------------------------------------------------

// Token `thread` of the chunk; rows past the end get beta = 0.
template <class T, bool kAligned>
__device__ void token_gates(const Forward<T, kAligned>& p, const Chunk& c, const ChunkShared<T>& m,
                            int64_t last_start) {
  const int token = static_cast<int>(threadIdx.x);
  const float n = m.squares[kC + token];
  m.value_scale[token] =
      p.gates.value == ValueMap::over_key_norm ? 1 / sqrtf(n + p.gates.eps) : 1.0f;
  m.beta[token] = 0;
  if (token >= c.rows) return;
  const int64_t row = c.b * p.s.T + c.first + token;
  const int64_t position =
      position_of(m.starts, c.first, token, last_start, p.documents.before(c.b));
  const HeadGates head(p.gates, c.h);
  const TokenStep step(p.gates, head, p.b.load(row, c.h), n, static_cast<float>(position));
  const Decay decay = log_decay(p.gates, head, p.a.load(row, c.h), step);
  m.beta[token] = step.gain.beta_hat;
  p.beta[row * p.beta_stride + c.h] = step.gain.beta_hat;
  p.g[row * p.g_stride + c.h] = decay.g;
}

// visit(i, y) for the activated values of a unit of v.
template <class T, bool kAligned, class Visit>
__device__ void visit_values(const Forward<T, kAligned>& p, const Chunk& c, const uint32_t* starts,
                             int run, int quad, Visit&& visit) {
  const int t = run * kRunTokens;
  const RunPlace place{c.b, c.h, quad * 4, c.first + t, p.s.T, starts_around(starts, t)};
  RawRun<T, kRunTokens> raw;
  load_run(raw, p.v, place);
  const Filter filter = load_filter(p.v, place);
  convolve(raw, filter, place.starts, [&](int i, const Quad& conv) {
    Quad y;
#pragma unroll
    for (int e = 0; e < 4; ++e) y[e] = conv[e] * sigmoid_fast(conv[e]);
    visit(i, y);
  });
}

// value_scale = 1 / |v|, a warp per run: the values are computed once more to be stored.
template <class T, bool kAligned>
__device__ void value_norms(const Forward<T, kAligned>& p, const Chunk& c,
                            const ChunkShared<T>& m) {
  const int warps = static_cast<int>(blockDim.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int run = static_cast<int>(threadIdx.x) / 32; run < kRuns; run += warps) {
    float squares[kRunTokens] = {};
#pragma unroll 1
    for (int quad = lane; quad < p.s.V / 4; quad += 32)
      visit_values(p, c, m.starts, run, quad, [&](int i, const Quad& y) {
        squares[i] += (y[0] * y[0] + y[1] * y[1]) + (y[2] * y[2] + y[3] * y[3]);
      });
#pragma unroll
    for (int i = 0; i < kRunTokens; ++i) {
      const float sum = group_sum(squares[i], kWarp);
      if (lane == 0)
        m.value_scale[run * kRunTokens + i] = 1 / sqrtf(sum + static_cast<float>(kUnitEps));
    }
  }
  __syncthreads();
}

template <class T, bool kAligned>
__device__ void values(const Forward<T, kAligned>& p, const Chunk& c, const ChunkShared<T>& m) {
  const int quads = p.s.V / 4, threads = static_cast<int>(blockDim.x);
#pragma unroll 1
  for (int unit = static_cast<int>(threadIdx.x); unit < kRuns * quads; unit += threads) {
    const int run = unit / quads, quad = unit % quads;
    if (run * kRunTokens >= c.rows) break;
    T* to = p.v_hat.at(p.s, c.b, c.first + run * kRunTokens, c.h, quad * 4);
    const int step = p.s.H * static_cast<int>(p.v_hat.stride);
    visit_values(p, c, m.starts, run, quad, [&](int i, Quad y) {
      const int token = run * kRunTokens + i;
      for (int e = 0; e < 4; ++e) y[e] *= m.value_scale[token];
      if (token < c.rows) store_quad<kAligned>(to + i * step, y);
    });
  }
}

// ---- A and its inverse -------------------------------------------------------------------------

// A_ij = beta_i k_i.k_j for j < i, else 0, in the blocks of 16 x 16 on and below the diagonal.
__device__ inline void store_A(const ChunkShared<bfloat16>& m, int i, int j, float dot) {
  m.A[i * kInverseStride + j] = j < i ? m.beta[i] * dot : 0;
}

__device__ inline void fill_A(const ChunkShared<bfloat16>& m, int K) {
  const int warps = static_cast<int>(blockDim.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int ld = key_stride<bfloat16>(K), row = lane % 8, matrix = lane / 8;
  for (int tile = static_cast<int>(threadIdx.x) / 32; tile < 10; tile += warps) {
    const int i = tile >= 6 ? 3 : tile >= 3 ? 2 : tile >= 1 ? 1 : 0;
    const int j = tile - i * (i + 1) / 2;
    // Matrices of A: rows 0-7, 8-15 at k 0-7, then at k 8-15. Of B: columns 0-7 at k 0-7, 8-15,
    // then columns 8-15.
    const bfloat16* left = m.k_hat + (16 * i + row + matrix % 2 * 8) * ld + matrix / 2 * 8;
    const bfloat16* right = m.k_hat + (16 * j + row + matrix / 2 * 8) * ld + matrix % 2 * 8;
    float sum[2][4] = {};
    for (int k = 0; k < K; k += 16) {
      uint32_t a[4], b[4];
      ldmatrix_x4(a, left + k);
      ldmatrix_x4(b, right + k);
      const uint32_t b_low[2] = {b[0], b[1]}, b_high[2] = {b[2], b[3]};
      mma_m16n8k16(sum[0], a, b_low);
      mma_m16n8k16(sum[1], a, b_high);
    }
    for (int half = 0; half < 2; ++half)
      for (int e = 0; e < 4; ++e)
        store_A(m, 16 * i + lane / 4 + e / 2 * 8, 16 * j + half * 8 + lane % 4 * 2 + e % 2,
                sum[half][e]);
  }
}

__device__ inline void fill_A(const ChunkShared<float>& m, int K) {
  const int threads = static_cast<int>(blockDim.x), ld = key_stride<float>(K);
  for (int entry = static_cast<int>(threadIdx.x); entry < kC * kC; entry += threads) {
    const int i = entry / kC, j = entry % kC;
    float dot = 0;
    for (int k = 0; k < K && j < i; k += 4) {
      const Quad x = unpack(load_quad<true>(m.k_hat + i * ld + k));
      const Quad y = unpack(load_quad<true>(m.k_hat + j * ld + k));
      for (int e = 0; e < 4; ++e) dot += x[e] * y[e];
    }
    m.A[i * kInverseStride + j] = j < i ? m.beta[i] * dot : 0;
  }
}

template <class T, bool kAligned>
__device__ void store_inverse(const Forward<T, kAligned>& p, const Chunk& c,
                              const ChunkShared<T>& m) {
  const int threads = static_cast<int>(blockDim.x);
  T* out =
      p.T_zero + ((static_cast<int64_t>(c.b) * p.chunks + c.n) * p.s.H + c.h) * kC * p.T_stride;
  for (int quad = static_cast<int>(threadIdx.x); quad < kC * kC / 4; quad += threads) {
    const int i = quad / (kC / 4), j = quad % (kC / 4) * 4;
    Quad t;
    for (int e = 0; e < 4; ++e) t[e] = j + e <= i ? m.T_zero[i * kInverseStride + j + e] : 0;
    store_quad<kAligned>(out + i * p.T_stride + j, t);
  }
}

// kPlain: neither softmax nor values by their own norm, whose code would cost the others registers.
template <class T, bool kAligned, bool kPlain>
__global__ void __launch_bounds__(kMaxThreads, kPlain ? 2 : 1)
    prep_forward_kernel(const __grid_constant__ Forward<T, kAligned> p) {
  const ChunkShared<T> m(p.s.K);
  Chunk c;
  const int block = static_cast<int>(blockIdx.x);
  c.h = block % p.s.H;
  c.n = block / p.s.H % p.chunks;
  c.b = block / (p.s.H * p.chunks);
  c.first = c.n * kC;
  c.rows = static_cast<int>(p.s.T - c.first < kC ? p.s.T - c.first : kC);

  if (threadIdx.x < 32) find_starts(p.documents, c.b, c.first, m.starts);
  const int64_t last_start = last_start_before(p.documents, c.b, c.first, m.found);
  __syncthreads();
  queries_and_keys<kPlain>(p, c, m);
  if (threadIdx.x < kC) token_gates(p, c, m, last_start);
  __syncthreads();
  if constexpr (!kPlain) {
    if (p.gates.value == ValueMap::unit) value_norms(p, c, m);
  }
  values(p, c, m);
  if (!p.T_zero) return;
  fill_A(m, p.s.K);
  __syncthreads();
  unit_lower_inverse(m.A, m.T_zero);
  store_inverse(p, c, m);
}

// ---- Launch -----------------------------------------------------------------------------------

template <class T, bool kAligned, bool kPlain>
void launch_forward(const Context& context, const MixerPrepForward& x) {
  const Forward<T, kAligned> p(x);
  const int threads = threads_of(p.s.K);
  const int64_t blocks = static_cast<int64_t>(p.s.B) * p.chunks * p.s.H;
  launch(context, prep_forward_kernel<T, kAligned, kPlain>,
         {dim3(static_cast<unsigned>(blocks)), static_cast<unsigned>(threads),
          ChunkShared<T>::bytes(p.s.K)},
         p);
}

void forward(Context& context, const MixerPrepForward& x) {
  const bool aligned = quads_aligned({x.in.q, x.in.k, x.in.v, x.w.q_conv, x.w.k_conv, x.w.v_conv,
                                      x.q_hat, x.k_hat, x.v_hat, x.T_zero});
  const RuleInfo& rule = rule_info(x.options.rule);
  const bool plain = rule.query != QueryMap::softmax && rule.key != KeyMap::softmax &&
                     rule.value != ValueMap::unit;
  visit_compute(context, [&]<class T>(T) {
    if (!aligned) return launch_forward<T, false, false>(context, x);
    plain ? launch_forward<T, true, true>(context, x) : launch_forward<T, true, false>(context, x);
  });
  advance_mixer(context, x);
}

KLA_OP(mixer_prep_forward, KLA_BACKEND, forward);

}  // namespace

}  // namespace kla::KLA_BACKEND
