// What a block of mixer_prep.cu works on: its chunk of a sequence, what its threads share, and a
// unit, 4 tokens of a quad of channels: loaded, convolved and activated in registers, and stored.
#pragma once

#include <algorithm>

#include "kernels/cuda/mixer_tokens.cuh"
#include "kernels/cuda/unit_lower_inverse.cuh"

namespace kla::KLA_BACKEND {

namespace {

constexpr int kC = static_cast<int>(kChunk);
constexpr int kRunTokens = 4, kRuns = kC / kRunTokens;
constexpr int kMaxThreads = 384;
constexpr int kSumLanes = 4;        // lanes that add their sums before shared memory does
constexpr int kSumStride = kC + 4;  // floats between the sums of two groups of kSumLanes quads

// Runs that a block takes at once, so that their values fit its registers.
int runs_at_once(int K) {
  return K <= 96 ? 16 : K <= 192 ? 8 : 4;
}
int threads_of(int K) {
  return std::max(128, (K / 4 * runs_at_once(K) + 31) / 32 * 32);
}

template <class T>
constexpr int key_stride(int K) {  // of k_hat in shared memory
  return padded<T>(K);
}

template <class T, bool kAligned>
struct Part {  // q, k or v
  ConvChannels<T, kAligned> in;
  T* out;  // [B,T,H,width]
  int64_t out_stride;

  Part(const View& input, const MixerInputs& all, int64_t first, const View& filter, int H,
       const View& output)
      : in(input, all, first, filter, H), out(pointer<T>(output)), out_stride(output.stride) {}
};

template <class T, bool kAligned>
struct Forward {
  MixerDims s;
  Part<T, kAligned> q, k, v;
  DocumentMap documents;
  GateArguments gates;
  LogitColumns a, b;
  float *beta, *g;
  int64_t beta_stride, g_stride;
  T* T_zero;
  int64_t T_stride;
  Divisor heads, chunks;  // chunks of a sequence
  Divisor quads;          // of K
  int runs;               // at once

  explicit Forward(const MixerPrepForward& x)
      : s(x.in),
        q(x.in.q, x.in, 0, x.w.q_conv, s.H, x.q_hat),
        k(x.in.k, x.in, s.H * s.K, x.w.k_conv, s.H, x.k_hat),
        v(x.in.v, x.in, 2 * s.H * s.K, x.w.v_conv, s.H, x.v_hat),
        documents(x.in, s.T),
        gates(x.w, x.options),
        a(x.in.a),
        b(x.in.b),
        beta(pointer<float>(x.beta)),
        g(pointer<float>(x.g)),
        beta_stride(x.beta.stride),
        g_stride(x.g.stride),
        T_zero(pointer<T>(x.T_zero)),
        T_stride(x.T_zero.stride),
        heads(s.H),
        chunks(static_cast<int>(chunk_count(s.T))),
        quads(s.K / 4),
        runs(runs_at_once(s.K)) {
    KLA_CHECK(x.T_zero.empty() || x.T_zero.dim(4) == kChunk,
              "the CUDA kernels take chunks of 64, not " + x.T_zero.describe());
    KLA_CHECK(s.B * s.T * s.H < int64_t{1} << 31, "too many rows for 32 bits");
  }
};

// What the threads of a block share.
template <class T>
struct ChunkShared {
  float* A;                       // [64, kInverseStride]
  float* T_zero;                  // [64, kInverseStride]
  float *top, *scale;             // [64] of the rows of q or k
  float *value_scale, *beta, *n;  // [64]; n: squared key norms
  uint32_t* starts;               // [kStartWords]
  int64_t* found;                 // [warps]; then the last document start before the chunk
  float* partial;                 // [kMaxKeyDim / 16, kSumStride] sums of rows
  T* k_hat;                       // [64, key_stride]; last, so that the others lie at fixed places

  static constexpr int kMatrix = kC * kInverseStride, kSums = kMaxKeyDim / 4 / kSumLanes;

  static size_t bytes(int K) {
    SharedSize size;
    size.array<float>(2 * kMatrix);
    size.array<float>(5 * kC);
    size.array<uint32_t>(kStartWords);
    size.array<int64_t>(kMaxThreads / 32);
    size.array<float>(kSums * kSumStride);
    size.array<T>(kC * key_stride<T>(K));
    return size.bytes();
  }
  __device__ explicit ChunkShared(int K) {
    SharedMemory shared;
    A = shared.array<float>(2 * kMatrix);
    T_zero = A + kMatrix;
    top = shared.array<float>(5 * kC);
    scale = top + kC;
    value_scale = scale + kC;
    beta = value_scale + kC;
    n = beta + kC;
    starts = shared.array<uint32_t>(kStartWords);
    found = shared.array<int64_t>(kMaxThreads / 32);
    partial = shared.array<float>(kSums * kSumStride);
    k_hat = shared.array<T>(kC * key_stride<T>(K));
  }
};

struct Chunk {
  int b, h, n;
  int rows, first;  // tokens; the first one's place in its sequence
  int token;        // and in all sequences
  bool inner;       // neither an edge of the sequence nor a document start within reach
};

// All but `inner`.
template <class T, bool kAligned>
__device__ Chunk chunk_of(const Forward<T, kAligned>& p) {
  const auto chunk = p.heads.divide(blockIdx.x), sequence = p.chunks.divide(chunk.quotient);
  Chunk c;
  c.h = chunk.rest;
  c.n = sequence.rest;
  c.b = sequence.quotient;
  c.first = c.n * kC;
  c.token = c.b * static_cast<int>(p.s.T) + c.first;
  c.rows = min(static_cast<int>(p.s.T) - c.first, kC);
  return c;
}

// ---- Units -------------------------------------------------------------------------------------

// The first of a thread's tokens and channels. Threads that are left over repeat the units of the
// first ones, and store the same bits.
struct Unit {
  int token, channel;
};
template <class T, bool kAligned>
__device__ Unit unit_of(const Forward<T, kAligned>& p) {
  const int units = p.runs * p.quads.by, thread = static_cast<int>(threadIdx.x);
  const auto place = p.quads.divide(thread < units ? thread : thread - units);
  return {place.quotient * kRunTokens, place.rest * 4};
}

__device__ inline float sum_of_squares(const Quad& y) {
  return (y[0] * y[0] + y[1] * y[1]) + (y[2] * y[2] + y[3] * y[3]);
}

__device__ inline float activate(float conv, bool silu) {
  return silu ? conv * sigmoid_fast(conv) : conv;
}

// Whether neither the sequence's edges nor a document start touch a unit and the inputs before it.
__device__ inline bool is_straight(const RunPlace& p) {
  return p.t >= kTail && p.t + kRunTokens <= p.T &&
         (p.starts & ((1u << (kTail + kRunTokens)) - 1)) == 0;
}

// The activated values of a straight unit, which nearly all are. Inputs stay packed until used and
// are taken channel by channel: a third of the registers, which let a third block onto a
// multiprocessor.
template <class T, bool kAligned>
__device__ void activate_straight(Quad (&y)[kRunTokens], const ConvChannels<T, kAligned>& in,
                                  const Chunk& c, const Unit& u, bool silu) {
  constexpr int kTaps = static_cast<int>(kConvWidth);
  const int column = c.h * in.width, stride = static_cast<int>(in.stride);
  const T* row =
      in.x + elements_before(c.token, stride) + column;  // the block's, then the thread's
  row += (u.token - kTail) * stride + u.channel;
  const float* w = in.w + column * kTaps + u.channel * kTaps;
  PackedQuad<T> x[kTail + kRunTokens];
#pragma unroll
  for (int i = 0; i < kTail + kRunTokens; ++i, row += stride) x[i] = load_quad<kAligned>(row);
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const Quad tap = unpack(load_quad<kAligned>(w + e * kTaps));
#pragma unroll
    for (int i = 0; i < kRunTokens; ++i)
      y[i][e] = activate(tap[0] * unpack(x[i])[e] + tap[1] * unpack(x[i + 1])[e] +
                             tap[2] * unpack(x[i + 2])[e] + tap[3] * unpack(x[i + 3])[e],
                         silu);
  }
}

__device__ inline RunPlace run_place(const Chunk& c, const Unit& u, int64_t end,
                                     const uint32_t* starts) {
  return {c.b, c.h, u.channel, c.first + u.token, end, starts_around(starts, u.token)};
}

// Of any unit.
template <class T, bool kAligned>
__device__ void activate_unit(Quad (&y)[kRunTokens], const ConvChannels<T, kAligned>& in,
                              const Chunk& c, const Unit& u, int64_t end, const uint32_t* starts,
                              bool silu) {
  if (c.inner || is_straight(run_place(c, u, end, starts)))
    return activate_straight(y, in, c, u, silu);
  const RunPlace place = run_place(c, u, end, starts);
  RawRun<T, kRunTokens> raw;
  load_run(raw, in, place);
  const auto keep = [&](int i, const Quad& conv) {
#pragma unroll
    for (int e = 0; e < 4; ++e) y[i][e] = activate(conv[e], silu);
  };
  convolve_run<true>(raw, load_filter(in, place), place.starts, keep);
}

// Scales a unit's rows and stores those within the sequence; keep(row) gets all.
template <class T, bool kAligned, class Keep>
__device__ void store_rows(const Quad (&y)[kRunTokens], const Quad& scale,
                           const Part<T, kAligned>& part, const Forward<T, kAligned>& p,
                           const Chunk& c, const Unit& u, Keep&& keep) {
  const int stride = static_cast<int>(part.out_stride), step = p.s.H * stride;
  T* to =
      part.out + elements_before(c.token * p.s.H + c.h, stride);  // the block's, then the thread's
  to += u.token * step + u.channel;
  const int left = c.rows - u.token;
  Quad x[kRunTokens];
#pragma unroll
  for (int i = 0; i < kRunTokens; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) x[i][e] = y[i][e] * scale[i];
    keep(x[i]);
  }
  if (left >= kRunTokens) {
#pragma unroll
    for (int i = 0; i < kRunTokens; ++i, to += step) store_quad<kAligned>(to, x[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kRunTokens; ++i, to += step)
      if (i < left) store_quad<kAligned>(to, x[i]);
  }
}

}  // namespace

}  // namespace kla::KLA_BACKEND
