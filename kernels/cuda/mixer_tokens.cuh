// What the forward and the backward kernel of mixer_prep share: where the raw inputs of a token's
// convolution lie, where documents start, and the convolution itself over a run of tokens and a
// quad of channels, with the three inputs before each token sliding through registers.
#pragma once

#include "kernels/cuda/mixer_gates.cuh"

namespace kla::KLA_BACKEND {

constexpr int kTail = static_cast<int>(kConvTail);

struct MixerDims {
  int B, H, K, V;
  int64_t T;

  explicit MixerDims(const MixerInputs& in)
      : B(static_cast<int>(in.b.dim(0))),
        H(static_cast<int>(in.b.dim(2))),
        K(static_cast<int>(in.q.cols() / (H > 0 ? H : 1))),
        V(static_cast<int>(in.v.cols() / (H > 0 ? H : 1))),
        T(in.b.dim(1)) {
    require_head_dims(K, V);
  }
};

// One of q, k, v: raw input [B,T,H*width], its part of the tail, its filter.
template <class T, bool kAligned>
struct ConvChannels {
  const T* x;
  int64_t stride;
  const float* tail;  // [B,3,*] at this part's first column; null: zeros
  int64_t tail_stride;
  const float* w;  // [H*width,4]
  int width;

  ConvChannels(const View& input, const MixerInputs& in, int64_t first, const View& filter, int H)
      : x(pointer<T>(input)),
        stride(input.stride),
        tail(in.conv_tail.empty() ? nullptr : pointer<float>(in.conv_tail) + first),
        tail_stride(in.conv_tail.stride),
        w(pointer<float>(filter)),
        width(static_cast<int>(input.cols() / (H > 0 ? H : 1))) {
    KLA_CHECK(filter.dense(), filter.describe());
  }
};

// The documents of sequence b.
struct DocumentMap {
  const uint8_t* reset;     // [B,T] or null
  const int64_t* position;  // [B] or null: tokens of the document before the first
  int64_t T;

  DocumentMap(const MixerInputs& in, int64_t tokens)
      : reset(pointer<uint8_t>(in.reset)), position(pointer<int64_t>(in.position)), T(tokens) {}
  __device__ bool starts(int b, int64_t t) const {
    return reset && t >= 0 && t < T && reset[b * T + t] != 0;
  }
  __device__ int64_t before(int b) const { return position ? position[b] : 0; }
};

// Last document start among the tokens before `end`, -1 if there is none. All threads call it;
// `found` is one int64 of shared memory per warp. Contains two barriers.
__device__ inline int64_t last_start_before(const DocumentMap& documents, int b, int64_t end,
                                            int64_t* found) {
  if (!documents.reset) return -1;
  const int threads = static_cast<int>(blockDim.x), lane = static_cast<int>(threadIdx.x) % 32;
  int64_t last = -1;
  for (int64_t t = end - 1 - threadIdx.x; t >= 0 && last < 0; t -= threads)
    if (documents.starts(b, t)) last = t;
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const int64_t other = __shfl_xor_sync(kAllLanes, last, step);
    last = other > last ? other : last;
  }
  if (lane == 0) found[threadIdx.x / 32] = last;
  __syncthreads();
  for (int i = 0; i < threads / 32; ++i) last = found[i] > last ? found[i] : last;
  __syncthreads();
  return last;
}

// Document starts of a tile of at most 64 tokens and of the tokens around it, as bits: bit 3 is the
// tile's first token.
constexpr int kStartWords = 4;

// All lanes of one warp.
__device__ inline void find_starts(const DocumentMap& documents, int b, int64_t first,
                                   uint32_t* words) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int i = 0; i < kStartWords; ++i) {
    const bool starts = documents.starts(b, first - kConvTail + 32 * i + lane);
    const uint32_t word = __ballot_sync(kAllLanes, starts);
    if (lane == 0) words[i] = word;
  }
}

// Whether one of the first `count` of them is set, 64 < count <= 96.
__device__ inline bool starts_within(const uint32_t* words, int count) {
  return (words[0] | words[1] | (words[2] & ((1u << (count - 64)) - 1))) != 0;
}

// Bit i: token t - 3 + i starts a document; t <= 64 counts within the tile. Threads without a token
// ask too, and ignore the answer.
__device__ inline uint32_t starts_around(const uint32_t* words, int t) {
  const int word = min(t / 32, kStartWords - 2);
  const uint64_t pair = words[word] | static_cast<uint64_t>(words[word + 1]) << 32;
  return static_cast<uint32_t>(pair >> (t % 32));
}

// 1, 2, ... within its document, for the tile's token t. `last` is the last start before the tile.
__device__ inline int64_t position_of(const uint32_t* words, int64_t first, int t, int64_t last,
                                      int64_t before) {
  const int own = t + kTail;
  for (int word = own / 32, bit = own % 32; word >= 0; --word, bit = 31) {
    const uint32_t seen = words[word] & (0xFFFFFFFFu >> (31 - bit));
    if (seen != 0) return own - (32 * word + 31 - __clz(static_cast<int>(seen))) + 1;
  }
  return last >= 0 ? first + t - last + 1 : before + first + t + 1;
}

// Raw inputs of a quad of channels over kRun tokens and the three before.
template <class T, int kRun>
struct RawRun {
  Quad window[kConvTail];  // zero where an earlier document hides them
  PackedQuad<T> x[kRun];   // zero past the end
};

struct RunPlace {
  int b, h, channel;  // channel within the head
  int64_t t, T;       // first token; tokens of the sequence
  uint32_t starts;    // of starts_around(t)
};

template <class T, bool kAligned>
__device__ Quad raw_before(const ConvChannels<T, kAligned>& c, const RunPlace& p, int64_t t) {
  const int64_t column = static_cast<int64_t>(p.h) * c.width + p.channel;
  if (t >= p.T) return {};
  if (t >= 0) return unpack(load_quad<kAligned>(c.x + (p.b * p.T + t) * c.stride + column));
  if (!c.tail) return {};
  const float* row = c.tail + (p.b * kConvTail + kConvTail + t) * c.tail_stride + column;
  return {{row[0], row[1], row[2], row[3]}};
}

template <int kRun, class T, bool kAligned>
__device__ void load_run(RawRun<T, kRun>& run, const ConvChannels<T, kAligned>& c,
                         const RunPlace& p) {
  const T* row =
      c.x + (p.b * p.T + p.t) * c.stride + static_cast<int64_t>(p.h) * c.width + p.channel;
  const int stride = static_cast<int>(c.stride);
  if (p.t >= kTail && p.t + kRun <= p.T) {  // nearly always: no row needs a question
#pragma unroll
    for (int i = 0; i < kTail; ++i)
      run.window[i] = unpack(load_quad<kAligned>(row + (i - kTail) * stride));
#pragma unroll
    for (int i = 0; i < kRun; ++i) run.x[i] = load_quad<kAligned>(row + i * stride);
  } else {
#pragma unroll
    for (int i = 0; i < kTail; ++i) run.window[i] = raw_before(c, p, p.t - kTail + i);
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      run.x[i] = {};
      if (p.t + i < p.T) run.x[i] = load_quad<kAligned>(row + i * stride);
    }
  }
  if (p.starts & 2) run.window[0] = {};
  if (p.starts & 4) run.window[0] = run.window[1] = {};
}

struct Filter {
  Quad channel[4];  // [channel of the quad][tap]
};

template <class T, bool kAligned>
__device__ Filter load_filter(const ConvChannels<T, kAligned>& c, const RunPlace& p) {
  Filter f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = static_cast<int64_t>(p.h) * c.width + p.channel + i;
    f.channel[i] = unpack(load_quad<kAligned>(c.w + row * kConvWidth));
  }
  return f;
}

template <bool kStarts, class T, int kRun, class Visit>
__device__ void convolve_run(const RawRun<T, kRun>& run, const Filter& f, uint32_t starts,
                             Visit& visit) {
  Quad taps[kConvWidth] = {{}, run.window[0], run.window[1], run.window[2]};
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
#pragma unroll
    for (int j = 0; j < kTail; ++j) taps[j] = taps[j + 1];
    taps[kTail] = unpack(run.x[i]);
    if (kStarts && starts >> (kTail + i) & 1) taps[0] = taps[1] = taps[2] = {};
    Quad c;
#pragma unroll
    for (int e = 0; e < 4; ++e)
      c[e] = f.channel[e][0] * taps[0][e] + f.channel[e][1] * taps[1][e] +
             f.channel[e][2] * taps[2][e] + f.channel[e][3] * taps[3][e];
    visit(i, c);
  }
}

// visit(i, c) with the convolution c of each token of the run. Runs in which no document starts
// have code without selections: those would cost as much as the convolution.
template <class T, int kRun, class Visit>
__device__ void convolve(const RawRun<T, kRun>& run, const Filter& f, uint32_t starts,
                         Visit&& visit) {
  if ((starts >> kTail & ((1u << kRun) - 1)) == 0)
    convolve_run<false>(run, f, starts, visit);
  else
    convolve_run<true>(run, f, starts, visit);
}

// Writes conv_tail_out and position_out, which may be the memory of conv_tail and position
// (mixer_progress.cu).
void advance_mixer(const Context&, const MixerPrepForward&);

}  // namespace kla::KLA_BACKEND
