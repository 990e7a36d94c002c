// What a call of mixer_prep hands to the next: the last three raw inputs of every channel, zero
// where a document has begun since, and the position of the last token.
#include "kernels/cuda/mixer_tokens.cuh"

namespace kla::KLA_BACKEND {

namespace {

template <class T>
struct Progress {
  MixerDims s;
  ConvChannels<T, false> q, k, v;
  DocumentMap documents;
  float* tail;
  int64_t tail_stride;
  int64_t* position;
};

// Raw input t of a channel, t >= -3.
template <class T>
__device__ float raw_input(const ConvChannels<T, false>& c, int b, int64_t t, int64_t T_,
                           int64_t column) {
  if (t >= 0) return to_float(c.x[(b * T_ + t) * c.stride + column]);
  return c.tail ? c.tail[(b * kConvTail + kConvTail + t) * c.tail_stride + column] : 0;
}

// Grid (channels / threads, B). A thread reads all it needs before it writes.
template <class T>
__global__ void advance_kernel(const __grid_constant__ Progress<T> p) {
  SharedMemory shared;
  int64_t* found = shared.array<int64_t>(static_cast<int>(blockDim.x) / 32);
  const int b = static_cast<int>(blockIdx.y);
  const int64_t last = last_start_before(p.documents, b, p.s.T, found);
  if (p.position && blockIdx.x == 0 && threadIdx.x == 0)
    p.position[b] = last >= 0 ? p.s.T - last : p.documents.before(b) + p.s.T;
  const int64_t keys = static_cast<int64_t>(p.s.H) * p.s.K, all = 2 * keys + p.s.H * p.s.V;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (!p.tail || channel >= all) return;
  const ConvChannels<T, false>& part = channel < keys ? p.q : channel < 2 * keys ? p.k : p.v;
  const int64_t column =
      channel < keys ? channel : channel - (channel < 2 * keys ? keys : 2 * keys);
  float x[kConvTail];
  for (int i = 0; i < kConvTail; ++i) {
    const int64_t t = p.s.T - kConvTail + i;
    x[i] = last >= 0 && last > t ? 0 : raw_input(part, b, t, p.s.T, column);
  }
  for (int i = 0; i < kConvTail; ++i) p.tail[(b * kConvTail + i) * p.tail_stride + channel] = x[i];
}

template <class T>
void launch_advance(const Context& context, const MixerPrepForward& x) {
  constexpr unsigned kThreads = 256;
  const MixerDims s(x.in);
  const Progress<T> progress{s,
                             {x.in.q, x.in, 0, x.w.q_conv, s.H},
                             {x.in.k, x.in, s.H * s.K, x.w.k_conv, s.H},
                             {x.in.v, x.in, 2 * s.H * s.K, x.w.v_conv, s.H},
                             DocumentMap(x.in, s.T),
                             pointer<float>(x.conv_tail_out),
                             x.conv_tail_out.stride,
                             pointer<int64_t>(x.position_out)};
  const int64_t channels = static_cast<int64_t>(s.H) * (2 * s.K + s.V);
  const dim3 grid(
      x.conv_tail_out.empty() ? 1u : static_cast<unsigned>((channels + kThreads - 1) / kThreads),
      static_cast<unsigned>(s.B));
  launch(context, advance_kernel<T>,
         {grid, kThreads, SharedSize().array<int64_t>(kThreads / 32).bytes()}, progress);
}

}  // namespace

void advance_mixer(const Context& context, const MixerPrepForward& x) {
  if (x.conv_tail_out.empty() && x.position_out.empty()) return;
  visit_compute(context, [&]<class T>(T) { launch_advance<T>(context, x); });
}

}  // namespace kla::KLA_BACKEND
