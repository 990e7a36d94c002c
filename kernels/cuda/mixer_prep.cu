// From the projections of a mixer to what the scan needs (kernels/README.md, "Mixer prep"): one
// block per sequence, chunk of 64 tokens and head. A thread works on a run of 4 tokens of a quad of
// channels of k, then of q, then of v:
//
//   1. k: convolves and activates in registers, keeps the values there while the block sums their
//      squares, then scales, rounds and stores them; k_hat stays in shared memory, as rounded.
//   2. gates: a thread per token, in the first two warps.
//   3. q, as k. While two warps sum its squares, the others make A = beta_i k_i.k_j from the
//      rounded keys.
//   4. v, scaled by the key norm at once; any number of channels. The first two warps first invert
//      the diagonal blocks of I + A.
//   5. the rest of the inverse, T_zero.
//
// mixer_progress.cu then advances tail and position, which may lie in place of the old ones.
#include "kernels/cuda/mixer_prep_units.cuh"

namespace kla::KLA_BACKEND {

namespace {

// ---- q and k -----------------------------------------------------------------------------------

__device__ inline float add(float x, float y) {
  return x + y;
}
__device__ inline float largest(float x, float y) {
  return fmaxf(x, y);
}

// Combines each of 4 values over groups of 4 lanes; lane i of a group gets value i.
template <class Combine>
__device__ float fold_group(const Quad& x, Combine&& combine) {
  static_assert(kSumLanes == 4 && kRunTokens == 4);
  const auto exchange = [&](float lower, float upper, unsigned lanes) {
    const bool high = threadIdx.x & lanes;
    const float other = __shfl_xor_sync(kAllLanes, high ? lower : upper, static_cast<int>(lanes));
    return combine(high ? upper : lower, other);
  };
  return exchange(exchange(x[0], x[2], 2), exchange(x[1], x[3], 2), 1);
}

// Combines what each unit has for its 4 tokens over the channels: finish(token, total) runs for
// every token of the pass, in the first two warps; the others do something else `meanwhile`.
// Contains two barriers.
template <class T, bool kAligned, class Combine, class Finish, class Meanwhile>
__device__ void reduce_rows(const Forward<T, kAligned>& p, const Unit& u, const ChunkShared<T>& m,
                            int first_token, const Quad& values, Combine&& combine, Finish&& finish,
                            Meanwhile&& meanwhile) {
  const int thread = static_cast<int>(threadIdx.x);
  m.partial[u.channel / (4 * kSumLanes) * kSumStride + u.token + thread % kSumLanes] =
      fold_group(values, combine);
  __syncthreads();
  if (thread >= kC) {
    meanwhile();
  } else if (thread < p.runs * kRunTokens) {
    const float* from = m.partial + first_token + thread;
    float total = from[0];
    const int groups = p.s.K / (4 * kSumLanes);
#pragma unroll 4
    for (int i = 1; i < groups; ++i) total = combine(total, from[i * kSumStride]);
    finish(first_token + thread, total);
  }
  __syncthreads();
}

struct Nothing {
  __device__ void operator()() const {}
};

// What multiplies a row of q (of k: kKey) whose squares sum to n.
template <bool kKey>
__device__ float row_scale(const GateArguments& gates, float n) {
  if (kKey) return 1 / sqrtf(n + gates.eps);
  return gates.query == QueryMap::unit ? 1 / sqrtf(n + static_cast<float>(kUnitEps)) : 1.0f;
}

// y becomes e^(y - max) and the scale 1 / sum.
template <class T, bool kAligned>
__device__ void softmax_rows(Quad (&y)[kRunTokens], const Forward<T, kAligned>& p, const Unit& u,
                             const ChunkShared<T>& m, int first_token) {
  Quad x;
  for (int i = 0; i < kRunTokens; ++i)
    x[i] = fmaxf(fmaxf(y[i][0], y[i][1]), fmaxf(y[i][2], y[i][3]));
  reduce_rows(
      p, u, m, first_token, x, largest, [&](int row, float top) { m.top[row] = top; }, Nothing{});
  for (int i = 0; i < kRunTokens; ++i) {
    for (int e = 0; e < 4; ++e) y[i][e] = expf(y[i][e] - m.top[u.token + i]);
    x[i] = (y[i][0] + y[i][1]) + (y[i][2] + y[i][3]);
  }
  reduce_rows(
      p, u, m, first_token, x, add, [&](int row, float sum) { m.scale[row] = 1 / sum; }, Nothing{});
}

// q or k of all tokens; the warps that no sum needs do `meanwhile`, once.
template <bool kKey, bool kPlain, class T, bool kAligned, class Meanwhile>
__device__ void normalise_rows(const Forward<T, kAligned>& p, const Chunk& c, Unit u,
                               const ChunkShared<T>& m, Meanwhile&& meanwhile) {
  const bool silu = kPlain || p.gates.silu_on_keys();
  const int tokens = p.runs * kRunTokens;
#pragma unroll 1
  for (int first = 0; first < kC; first += tokens, u.token += tokens) {
    Quad y[kRunTokens], squares;
    activate_unit(y, (kKey ? p.k : p.q).in, c, u, p.s.T, m.starts, silu);
#pragma unroll
    for (int i = 0; i < kRunTokens; ++i) squares[i] = sum_of_squares(y[i]);
    reduce_rows(
        p, u, m, first, squares, add,
        [&](int row, float n) {
          m.scale[row] = row_scale<kKey>(p.gates, n);
          if (!kKey) return;
          m.n[row] = n;
          m.value_scale[row] = p.gates.value == ValueMap::over_key_norm ? m.scale[row] : 1.0f;
        },
        [&] {
          if (first == 0) meanwhile();
        });
    if constexpr (!kPlain) {
      if (kKey ? p.gates.key == KeyMap::softmax : p.gates.query == QueryMap::softmax)
        softmax_rows(y, p, u, m, first);
    }
    T* row = m.k_hat + u.token * key_stride<T>(p.s.K) + u.channel;
    const Quad scale = unpack(load_quad<true>(m.scale + u.token));
    store_rows(y, scale, kKey ? p.k : p.q, p, c, u, [&](const Quad& x) {
      if (kKey) store_quad<true>(row, x);
      row += key_stride<T>(p.s.K);
    });
  }
}

// ---- Gates and values --------------------------------------------------------------------------

// Token `thread` of the chunk; rows past the end get beta = 0.
template <class T, bool kAligned>
__device__ void token_gates(const Forward<T, kAligned>& p, const Chunk& c,
                            const ChunkShared<T>& m) {
  const int token = static_cast<int>(threadIdx.x);
  m.beta[token] = 0;
  if (token >= c.rows) return;
  const int64_t row = c.token + token;
  const float a = p.a.load(row, c.h);  // under way while the step is found
  const int64_t position = position_of(m.starts, c.first, token, *m.found, p.documents.before(c.b));
  const HeadGates head(p.gates, c.h);
  const TokenStep step(p.gates, head, p.b.load(row, c.h), m.n[token], static_cast<float>(position));
  const Decay decay = log_decay(p.gates, head, a, step);
  m.beta[token] = step.gain.beta_hat;
  p.beta[row * p.beta_stride + c.h] = step.gain.beta_hat;
  p.g[row * p.g_stride + c.h] = decay.g;
}

// value_scale = 1 / |v|, a warp per run: the values are computed once more to be stored.
template <class T, bool kAligned>
__device__ void value_norms(const Forward<T, kAligned>& p, const Chunk& c,
                            const ChunkShared<T>& m) {
  const int warps = static_cast<int>(blockDim.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int run = static_cast<int>(threadIdx.x) / 32; run < kRuns; run += warps) {
    float squares[kRunTokens] = {};
#pragma unroll 1
    for (int channel = lane * 4; channel < p.s.V; channel += 32 * 4) {
      Quad y[kRunTokens];
      activate_unit(y, p.v.in, c, {run * kRunTokens, channel}, p.s.T, m.starts, true);
#pragma unroll
      for (int i = 0; i < kRunTokens; ++i) squares[i] += sum_of_squares(y[i]);
    }
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
__device__ void values(const Forward<T, kAligned>& p, const Chunk& c, Unit u,
                       const ChunkShared<T>& m) {
  const int first_channel = u.channel, tokens = p.runs * kRunTokens;
#pragma unroll 1
  for (int first = 0; first < kC; first += tokens, u.token += tokens) {
#pragma unroll 1
    for (int channel = 0; channel < p.s.V; channel += p.s.K) {
      u.channel = min(first_channel + channel, p.s.V - 4);
      Quad y[kRunTokens];
      activate_unit(y, p.v.in, c, u, p.s.T, m.starts, true);
      const Quad scale = unpack(load_quad<true>(m.value_scale + u.token));
      store_rows(y, scale, p.v, p, c, u, [](const Quad&) {});
    }
  }
}

// ---- A and its inverse -------------------------------------------------------------------------

// A_ij = beta_i k_i.k_j in the blocks of 16 x 16 on and below the diagonal, by all warps but two.
// What stands on the diagonal and above it is not read.
template <class T>
__device__ void fill_A(const ChunkShared<T>& m, int K) {
  const Tile<T> keys{m.k_hat, key_stride<T>(K)};
  const Tile<float> A{m.A, kInverseStride};
  for (int tile = uniform_warp_index() - 2; tile < 10; tile += warp_count() - 2) {
    const int i = tile >= 6 ? 3 : tile >= 3 ? 2 : tile >= 1 ? 1 : 0;
    const int j = tile - i * (i + 1) / 2;
    Accumulator dots;
#pragma unroll 2
    for (int k = 0; k < K; k += kBlock)
      multiply_add(dots, load_a(keys, kBlock * i, k), load_b_transposed(keys, kBlock * j, k));
    for (int e = 0; e < 8; ++e) dots[e] *= m.beta[kBlock * i + row_of(e)];
    store(A, kBlock * i, kBlock * j, dots);
  }
}

// Zeros above the diagonal: those of its blocks stand in T_zero.
template <class T, bool kAligned>
__device__ void store_inverse(const Forward<T, kAligned>& p, const ChunkShared<T>& m) {
  constexpr int kQuads = kC / 4;  // of a row
  const int thread = static_cast<int>(threadIdx.x), rows = static_cast<int>(blockDim.x) / kQuads;
  const int column = thread % kQuads * 4;
  int row = thread / kQuads;
  const float* from = m.T_zero + row * kInverseStride + column;
  const int stride = static_cast<int>(p.T_stride);
  T* to =
      p.T_zero + elements_before(static_cast<int>(blockIdx.x), kC * stride) + row * stride + column;
  for (; row < kC; row += rows) {
    PackedQuad<float> t = {};
    if (column / kLeaf <= row / kLeaf) t = load_quad<true>(from);
    store_quad<kAligned>(to, unpack(t));
    from += rows * kInverseStride;
    to += rows * stride;
  }
}

// Blocks a multiprocessor can hold without a spill.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
template <class T>
constexpr int kPlainBlocks = sizeof(T) == 2 ? 2 : 1;
#else
template <class T>
constexpr int kPlainBlocks = sizeof(T) == 2 ? 3 : 2;
#endif
// kPlain: neither softmax nor values by their own norm, whose code would cost the others registers.
template <class T, bool kAligned, bool kPlain>
__global__ void __launch_bounds__(kMaxThreads, kPlain ? kPlainBlocks<T> : 1)
    prep_forward_kernel(const __grid_constant__ Forward<T, kAligned> p) {
  const ChunkShared<T> m(p.s.K);
  Chunk c = chunk_of(p);
  const Unit u = unit_of(p);

  if (threadIdx.x < 32) find_starts(p.documents, c.b, c.first, m.starts);
  const int64_t last_start = last_start_before(p.documents, c.b, c.first, m.found);
  if (threadIdx.x == 0) *m.found = last_start;
  __syncthreads();
  c.inner = c.first > 0 && c.rows == kC && !starts_within(m.starts, kTail + kC);
  normalise_rows<true, kPlain>(p, c, u, m, Nothing{});
  if (threadIdx.x < kC) token_gates(p, c, m);
  normalise_rows<false, kPlain>(p, c, u, m, [&] {
    if (p.T_zero) fill_A(m, p.s.K);
  });
  if (p.T_zero && threadIdx.x < kC) invert_leaf(m.A, m.T_zero);
  if constexpr (!kPlain) {
    if (p.gates.value == ValueMap::unit) value_norms(p, c, m);
  }
  values(p, c, u, m);
  if (!p.T_zero) return;
  __syncthreads();
  merge_leaves(m.A, m.T_zero);
  store_inverse(p, m);
}

// ---- Launch -----------------------------------------------------------------------------------

template <class T, bool kAligned, bool kPlain>
void launch_forward(const Context& context, const MixerPrepForward& x) {
  const Forward<T, kAligned> p(x);
  const int threads = threads_of(p.s.K);
  const int64_t blocks = static_cast<int64_t>(p.s.B) * p.chunks.by * p.s.H;
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
