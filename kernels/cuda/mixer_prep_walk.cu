// Backward of mixer_prep along a straight walk (kernels/README.md, "Mixer prep"): one block per
// head and run of tokens, a thread per pair of channels of q, k and v together. A thread walks its
// pair forward in time, 4 tokens a step, and keeps in registers what neighbouring tokens share:
// the three inputs before, dx of the last three tokens as far as it is known, and the filter's
// gradient. So nothing is read or computed twice but the step after a run, whose dc the run's last
// three tokens need. Each step:
//
//   1. convolve and activate; sums of squares and of y.dy over groups of 16 channels.
//   2. one warp adds the groups and finds alpha and gamma of each row and part. The others wait for
//      it: what does not depend on the norms is worked out ahead, for all steps.
//   3. dc = alpha (dy slope) + gamma (y slope), into the gradients of filter and inputs.
//
// The gates themselves (da, db, their parameters) follow after the walk, a thread per token.
#include "kernels/cuda/mixer_prep_tile.cuh"
#include "kernels/cuda/mixer_prep_walk.cuh"

namespace kla::KLA_BACKEND {

namespace {

constexpr int kTokens = Walk::kTokens, kLanes = 8;  // lanes of a group: 16 channels
constexpr int kMostRows = (Walk::kMostSteps + 1) * kTokens;

struct Pair {
  float v[2];
  __device__ float& operator[](int i) { return v[i]; }
  __device__ float operator[](int i) const { return v[i]; }
};

template <class T>
struct alignas(2 * sizeof(T)) PackedPair {
  T element[2];
};
template <>
struct PackedPair<bfloat16> {
  uint32_t bits;
};

__device__ inline Pair unpack(const PackedPair<float>& p) {
  return {{p.element[0], p.element[1]}};
}
__device__ inline Pair unpack(const PackedPair<bfloat16>& p) {
  return {{__uint_as_float(p.bits << 16), __uint_as_float(p.bits & 0xFFFF0000u)}};
}
template <class T>
__device__ PackedPair<T> load_pair(const T* from) {
  return *reinterpret_cast<const PackedPair<T>*>(from);
}
__device__ inline void store_pair(float* to, const Pair& x) {
  *reinterpret_cast<PackedPair<float>*>(to) = {{x[0], x[1]}};
}
__device__ inline void store_pair(bfloat16* to, const Pair& x) {
  *reinterpret_cast<PackedPair<bfloat16>*>(to) = {pack_bf16(x[0], x[1])};
}

// Where a block walks: tokens [first, first + rows) of sequence b, in `steps` steps and one more.
struct Course {
  int b, h, steps, rows;
  int64_t first, T;  // T: tokens of the sequence

  template <class T_>
  __device__ Course(const Backward<T_, true>& p, int most_steps, int blocks) : T(p.s.T) {
    const int block = static_cast<int>(blockIdx.x);
    h = block % p.s.H;
    b = block / (p.s.H * blocks);
    first = static_cast<int64_t>(block / p.s.H % blocks) * most_steps * kTokens;
    rows = T - first < most_steps * kTokens ? static_cast<int>(T - first) : most_steps * kTokens;
    steps = (rows + kTokens - 1) / kTokens;
  }
  __device__ int64_t token() const { return b * T + first; }
  __device__ int left() const { return static_cast<int>(T - first); }  // to the sequence's end
};

// What a lane of the first warp adds up: lane 8 part + i column i of the groups of q and of k; the
// last two eights of lanes share the groups of v.
struct alignas(8) Addends {
  int first, groups;

  __device__ Addends(int lane, int K, int V) {
    const int eight = lane / kLanes, keys = K / 16, values = V / 16, half = (values + 1) / 2;
    first = (eight < kV ? eight * keys : 2 * keys + (eight - kV) * half) * kLanes + lane % kLanes;
    groups = eight < kV ? keys : eight == kV ? half : values - half;
  }
};

// What the threads of a block share.
struct WalkShared {
  float* filter;       // [2][threads][4 taps]; in registers it would cost a block of four
  float* sums;         // [groups][8]: squares of the step's 4 rows, then y.dy
  Addends* addends;    // [32]
  float* factors;      // [kParts][4 rows][alpha, gamma]
  float *eta, *dbeta;  // [kMostRows]
  float* position;     // [kMostRows] 1, 2, ... within the document
  float* n;            // [kMostRows] squared key norms
  float* by_norm;      // [kMostRows] 2 dbeta f(t): what scales the rule's derivative by n
  float* scalar;       // of the head's step rule
  float* scalars;      // [warps][kScalars]
  int* dw_place;       // [threads] of the pair's dw in the block's share, for after the walk
  Course* course;

  static constexpr int kFactors = kParts * kTokens * 2;
  static constexpr int kScalarFloats = Walk::kMostThreads / 32 * kScalars;
  static size_t bytes(int threads) {
    return SharedSize()
        .array<float>(threads * 2 * kConvWidth)
        .array<float>(threads)
        .array<Addends>(32)
        .array<float>(kFactors + 1)
        .array<float>(5 * kMostRows)
        .array<float>(kScalarFloats)
        .array<int>(threads)
        .array<Course>(1)
        .bytes();
  }
  __device__ explicit WalkShared(int threads) {
    SharedMemory shared;
    filter = shared.array<float>(threads * 2 * kConvWidth);
    sums = shared.array<float>(threads);
    addends = shared.array<Addends>(32);
    factors = shared.array<float>(kFactors + 1);
    scalar = factors + kFactors;
    eta = shared.array<float>(5 * kMostRows);
    dbeta = eta + kMostRows;
    n = dbeta + kMostRows;
    position = n + kMostRows;
    by_norm = position + kMostRows;
    scalars = shared.array<float>(kScalarFloats);
    dw_place = shared.array<int>(threads);
    course = shared.array<Course>(1);
  }
};

template <class T>
__device__ float* block_share(const Backward<T, true>& p) {
  return p.shares + static_cast<int64_t>(blockIdx.x) * Share{p.s.K, p.s.V}.floats();
}

// ---- Loads -------------------------------------------------------------------------------------

template <class T>
struct Inputs {
  PackedPair<T> x[kTokens], dy[kTokens];
};

// A thread's rows, advanced step by step.
template <class T>
struct Cursor {
  const T *x, *dy;
  int x_step, dy_step;

  // `left` tokens of the sequence are left; those past the end read as zero.
  __device__ void next(Inputs<T>& to, int left) {
    if (left >= kTokens) {
#pragma unroll
      for (int i = 0; i < kTokens; ++i, x += x_step, dy += dy_step) {
        to.x[i] = load_pair(x);
        to.dy[i] = load_pair(dy);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kTokens; ++i, x += x_step, dy += dy_step) {
        to.x[i] = to.dy[i] = {};
        if (i < left) to.x[i] = load_pair(x);
        if (i < left) to.dy[i] = load_pair(dy);
      }
    }
  }
};

// The input `back` tokens before the walk, of the tail before the sequence.
template <class T>
__device__ Pair input_before(const ConvChannels<T, true>& c, const Course& at, int column,
                             int back) {
  const int64_t t = at.first - back;
  if (t >= 0) return unpack(load_pair(c.x + (at.b * at.T + t) * c.stride + column));
  if (!c.tail) return {};
  const float* row = c.tail + (at.b * kConvTail + kConvTail + t) * c.tail_stride + column;
  return {{row[0], row[1]}};
}

// ---- Sums and factors of rows ------------------------------------------------------------------

// Sums each of 8 values over a group of 8 lanes; lane i of the group gets the sum of value i.
__device__ inline float fold_group(float (&x)[kLanes]) {
#pragma unroll
  for (int half = kLanes / 2; half > 0; half /= 2) {
    const bool upper = threadIdx.x & half;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float keep = upper ? x[i + half] : x[i], give = upper ? x[i] : x[i + half];
      x[i] = keep + __shfl_xor_sync(kAllLanes, give, half);
    }
  }
  return x[0];
}

// alpha and gamma of the rows of a step that starts at row `row`, `left` of the sequence's tokens
// before its end: by the first warp.
template <class T>
__device__ void step_factors(const Backward<T, true>& p, const WalkShared& m, int row, int left) {
  const int lane = static_cast<int>(threadIdx.x % 32), eight = lane / kLanes, i = lane % kTokens;
  const float* from = m.sums + m.addends[lane].first;
  float sum = 0;
#pragma unroll 2
  for (int group = m.addends[lane].groups; group > 0; --group, from += kLanes) sum += *from;
  const float other = __shfl_xor_sync(kAllLanes, sum, kLanes);
  if (eight >= kV) sum += other;
  const float n = __shfl_sync(kAllLanes, sum, eight * kLanes + i);
  const float along = __shfl_sync(kAllLanes, sum, eight * kLanes + kTokens + i);
  const float key_n = __shfl_sync(kAllLanes, sum, kK * kLanes + i);
  const float value_along = __shfl_sync(kAllLanes, sum, kV * kLanes + kTokens + i);
  if (eight >= kParts || lane % kLanes >= kTokens) return;

  const bool unit_query = eight == kQ && p.gates.query == QueryMap::unit;
  const bool unscaled = eight == kQ ? !unit_query : eight == kV && p.gates.value == ValueMap::raw;
  const float r = rsqrtf(unit_query ? n + static_cast<float>(kUnitEps) : key_n + p.gates.eps);
  float gamma = unit_query ? -r * r * r * along : 0;
  if (eight == kK) {
    const StepInput<float> step{m.eta[row + i], key_n, p.gates.eps, m.position[row + i], *m.scalar};
    const float d_n = visit_rule(p.gates.rule, StepOfRule{step, SeqFactor::none}).d_n;
    const float beyond = p.gates.value == ValueMap::over_key_norm ? value_along : 0;
    gamma = m.by_norm[row + i] * d_n - r * r * r * (along + beyond);
    m.n[row + i] = key_n;
  }
  const bool valid = i < left;
  store_pair(m.factors + (eight * kTokens + i) * 2,
             {{valid ? (unscaled ? 1.0f : r) : 0, valid ? gamma : 0}});
}

// ---- Gates -------------------------------------------------------------------------------------

template <class T>
__device__ void load_gates(const Backward<T, true>& p, const Course& at, const WalkShared& m) {
  const HeadGates head(p.gates, at.h);
  if (threadIdx.x == 0) *m.scalar = head.scalar;
  const int threads = static_cast<int>(blockDim.x), rows = (at.steps + 1) * kTokens;
  for (int row = static_cast<int>(threadIdx.x); row < rows; row += threads) {
    m.eta[row] = m.dbeta[row] = m.by_norm[row] = 0;
    m.position[row] = static_cast<float>(p.documents.before(at.b) + at.first + row + 1);
    if (row >= at.left()) continue;
    const int64_t token = at.token() + row;
    m.eta[row] = sigmoid(p.b.load(token, at.h) + head.b_bias);
    m.dbeta[row] = p.dbeta[token * p.dbeta_stride + at.h];
    m.by_norm[row] = 2 * m.dbeta[row] * seq_factor(p.gates.factor, m.position[row]);
  }
}

// da, db and the scalars' shares, once all key norms are known.
template <class T>
__device__ void gates_backward(const Backward<T, true>& p, const Course& at, const WalkShared& m) {
  const HeadGates head(p.gates, at.h);
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  float sums[kScalars] = {};
  for (int row = thread; row < at.rows; row += threads) {
    const int64_t token = at.token() + row;
    const TokenStep step(p.gates, head, p.b.load(token, at.h), m.n[row], m.position[row]);
    const Decay decay = log_decay(p.gates, head, p.a.load(token, at.h), step);
    const float dbeta = m.dbeta[row], dg = p.dg[token * p.dg_stride + at.h];
    const float da = dg * decay.d_a;
    const float db = dbeta * step.gain.d_eta * step.eta * step.kept + dg * decay.d_b;
    p.da.store(token, at.h, da);
    p.db.store(token, at.h, db);
    sums[kBBias] += db;
    sums[kALog] += dg * decay.g;
    sums[kABias] += da;
    sums[kTheta] += dbeta * step.gain.d_scalar;
  }
#pragma unroll
  for (int i = 0; i < kScalars; ++i) {
    const float sum = group_sum(sums[i], kWarp);
    if (thread % 32 == 0) m.scalars[thread / 32 * kScalars + i] = sum;
  }
  __syncthreads();
  if (thread >= kScalars) return;
  float sum = 0;
  for (int warp = 0; warp < threads / 32; ++warp) sum += m.scalars[warp * kScalars + thread];
  block_share(p)[Share{p.s.K, p.s.V}.scalars() + thread] = sum;
}

// ---- A pair of channels ------------------------------------------------------------------------

struct Channels {
  int part, first;  // first of the pair, within its head

  // Threads beyond the last pair repeat it, and store the same bits.
  __device__ Channels(int thread, int K, int V) {
    const int pairs = K + V / 2, pair = thread < pairs ? thread : pairs - 1;
    part = 2 * pair < K ? kQ : pair < K ? kK : kV;
    first = 2 * pair - part * K;
  }
};

// A thread's part of WalkShared::filter.
struct PairFilter {
  Quad taps[2];
  __device__ explicit PairFilter(const float* filter)
      : taps{unpack(load_quad<true>(filter)),
             unpack(load_quad<true>(filter + blockDim.x * kConvWidth))} {}
};

// What a pair carries from step to step.
struct Carried {
  Pair before[kTail];   // inputs
  Pair pending[kTail];  // dx of the last three tokens, so far
  Pair dw[kConvWidth];
};

// Of the step's tokens, y and dy times the slope of y, of which dc is made; and their shares of the
// sums of rows.
struct Slopes {
  Pair y[kTokens], dy[kTokens];
};
template <class T>
__device__ void measure(Slopes& slopes, float (&sums)[kLanes], const Carried& c,
                        const Inputs<T>& in, const float* filter) {
  const PairFilter w(filter);
  Pair taps[kConvWidth] = {{}, c.before[0], c.before[1], c.before[2]};
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
#pragma unroll
    for (int j = 0; j < kTail; ++j) taps[j] = taps[j + 1];
    taps[kTail] = unpack(in.x[i]);
    const Pair dy = unpack(in.dy[i]);
    Pair y;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float conv = w.taps[e][0] * taps[0][e] + w.taps[e][1] * taps[1][e] +
                         w.taps[e][2] * taps[2][e] + w.taps[e][3] * taps[3][e];
      const float s = sigmoid_fast(conv);
      y[e] = conv * s;
      const float slope = s + y[e] * (1 - s);
      slopes.y[i][e] = y[e] * slope;
      slopes.dy[i][e] = dy[e] * slope;
    }
    sums[i] = y[0] * y[0] + y[1] * y[1];
    sums[kTokens + i] = y[0] * dy[0] + y[1] * dy[1];
  }
}

// The pair's dc, into dw if the step is `own`; emit(dx) gets the finished dx of the tokens three
// before the step's.
template <class T, class Emit>
__device__ void spread(Carried& c, const Slopes& slopes, const PackedPair<T> (&inputs)[kTokens],
                       const float* filter, const float* factors, bool own, Emit&& emit) {
  const PairFilter w(filter);
  Pair dc[kTokens], dx[kTokens];
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    const Pair factor = unpack(load_pair(factors + 2 * i));
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      dc[i][e] = factor[0] * slopes.dy[i][e] + factor[1] * slopes.y[i][e];
      dx[i][e] = c.pending[0][e] + w.taps[e][0] * dc[i][e];
      c.pending[0][e] = c.pending[1][e] + w.taps[e][1] * dc[i][e];
      c.pending[1][e] = c.pending[2][e] + w.taps[e][2] * dc[i][e];
      c.pending[2][e] = w.taps[e][3] * dc[i][e];
    }
  }
  emit(dx);
  if (!own) return;
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    const Pair x = unpack(inputs[i]);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
#pragma unroll
      for (int j = 0; j < kTail; ++j) c.dw[j][e] += dc[i][e] * c.before[j][e];
      c.dw[kTail][e] += dc[i][e] * x[e];
    }
    c.before[0] = c.before[1];
    c.before[1] = c.before[2];
    c.before[2] = x;
  }
}

// ---- The walk ----------------------------------------------------------------------------------

template <class T>
__device__ void walk(const Backward<T, true>& p, const Course& at, const WalkShared& m) {
  const int thread = static_cast<int>(threadIdx.x);
  const Channels channels(thread, p.s.K, p.s.V);
  const Stream<T, true>& stream = p.streams[channels.part];
  const int column = at.h * stream.conv.width + channels.first;
  const int64_t token = at.token();
  const int dx_step = static_cast<int>(stream.dx_stride);
  const auto rows = static_cast<unsigned>(at.rows);
  T* dx = stream.dx + (token - kTail) * stream.dx_stride + column;
  Cursor<T> cursor{stream.conv.x + token * stream.conv.stride + column,
                   stream.dy + (token * p.s.H + at.h) * stream.dy_stride + channels.first,
                   static_cast<int>(stream.conv.stride),
                   p.s.H * static_cast<int>(stream.dy_stride)};
  if (thread < 32) m.addends[thread] = Addends(thread, p.s.K, p.s.V);
  Carried c = {};
  m.dw_place[thread] =
      Share{p.s.K, p.s.V}.conv(channels.part) + channels.first * static_cast<int>(kConvWidth);
  float* filter = m.filter + thread * kConvWidth;  // read by its own thread only
  for (int e = 0; e < 2; ++e)
    store_quad<true>(filter + e * static_cast<int>(blockDim.x) * kConvWidth,
                     unpack(load_quad<true>(stream.conv.w + (column + e) * kConvWidth)));
#pragma unroll
  for (int i = 0; i < kTail; ++i) c.before[i] = input_before(stream.conv, at, column, kTail - i);

  int left = at.left();
  Inputs<T> ahead;
  cursor.next(ahead, left);
#pragma unroll 1
  for (int step = 0; step <= at.steps; ++step) {
    const Inputs<T> in = ahead;
    Slopes slopes;
    float sums[kLanes];
    measure(slopes, sums, c, in, filter);
    m.sums[thread] = fold_group(sums);
    __syncthreads();
    if (thread < 32) step_factors(p, m, step * kTokens, left);
    left -= kTokens;  // the next loads are under way from here, but cost the factors no registers
    if (step < at.steps) cursor.next(ahead, left);
    __syncthreads();
    spread(c, slopes, in.x, filter, m.factors + channels.part * kTokens * 2, step < at.steps,
           [&](const Pair(&values)[kTokens]) {
             const bool inner = 0 < step && step < at.steps;  // nearly always
#pragma unroll
             for (int i = 0; i < kTokens; ++i, dx += dx_step)
               if (inner || static_cast<unsigned>(step * kTokens + i - kTail) < rows)
                 store_pair(dx, values[i]);
           });
  }
  float* dw = block_share(p) + m.dw_place[thread];
#pragma unroll
  for (int e = 0; e < 2; ++e)
    store_quad<true>(dw + e * kConvWidth, {{c.dw[0][e], c.dw[1][e], c.dw[2][e], c.dw[3][e]}});
}

template <class T>
__global__ void __launch_bounds__(Walk::kMostThreads, sizeof(T) == 2 ? 2 : 1)
    prep_walk_kernel(const __grid_constant__ Backward<T, true> p, int steps, int blocks) {
  const WalkShared m(static_cast<int>(blockDim.x));
  {
    const Course at(p, steps, blocks);
    if (threadIdx.x == 0) *m.course = at;  // for after the walk: there it costs no registers
    load_gates(p, at, m);
    __syncthreads();
    walk(p, at, m);
  }
  gates_backward(p, *m.course, m);
}

}  // namespace

template <class T>
void walk_backward(const Context& context, const MixerPrepBackward& x, float* shares) {
  const MixerDims s(x.in);
  const Walk cut(s);
  const int64_t blocks = static_cast<int64_t>(s.B) * cut.blocks * s.H;
  launch(context, prep_walk_kernel<T>,
         {dim3(static_cast<unsigned>(blocks)), static_cast<unsigned>(cut.threads),
          WalkShared::bytes(cut.threads)},
         Backward<T, true>(x, shares), cut.steps, cut.blocks);
  add_shares(context, x, s, s.B * cut.blocks, shares);
}

template void walk_backward<bfloat16>(const Context&, const MixerPrepBackward&, float*);
template void walk_backward<float>(const Context&, const MixerPrepBackward&, float*);

}  // namespace kla::KLA_BACKEND
