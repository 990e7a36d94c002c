// One token of the gated delta rule: one pass over the state [V][K], which is read once and written
// once, all the op's time. A block owns 16 rows of one head's state; eight lanes share a row, each
// with kQuads quads of it in registers, so that a warp moves four rows at a time in whole lines.
#include <cmath>

#include "kernels/cuda/quad.cuh"
#include "kernels/ops.h"

namespace kla::KLA_BACKEND {

namespace {

constexpr int kLanes = 8, kRows = 16, kThreads = kLanes * kRows;  // of a row; of a block
constexpr int kMaxQuads = 8;                                      // of a lane: K <= 256

template <class T>
struct Step {
  int H, K, V;
  float* S;
  const T *q, *k, *v;
  T* o;
  const float *beta, *g;
  int64_t S_stride, q_stride, k_stride, v_stride, o_stride, beta_stride, g_stride;
  float scale;
};

// Grid (V / 16, B * H).
template <class T, bool kAligned, int kQuads>
__global__ void __launch_bounds__(kThreads) delta_step_kernel(const __grid_constant__ Step<T> p) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int row = static_cast<int>(blockIdx.x) * kRows + static_cast<int>(threadIdx.x) / kLanes;
  const int64_t head = blockIdx.y, b = head / p.H, h = head % p.H;
  float* S = p.S + (head * p.V + row) * p.S_stride;
  const auto inside = [&](int i) { return 4 * (lane + i * kLanes) < p.K; };

  Quad s[kQuads], k[kQuads];
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    s[i] = k[i] = {};
    const int column = 4 * (lane + i * kLanes);
    if (!inside(i)) continue;
    s[i] = unpack(load_quad<kAligned>(S + column));
    k[i] = unpack(load_quad<kAligned>(p.k + head * p.k_stride + column));
  }
  const float decay = expf(p.g[b * p.g_stride + h]), beta = p.beta[b * p.beta_stride + h];
  float known = 0;
#pragma unroll
  for (int i = 0; i < kQuads; ++i)
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      s[i][e] *= decay;
      known += s[i][e] * k[i][e];
    }
  const float value = to_float(p.v[head * p.v_stride + row]);
  const float write = beta * (value - group_sum(known, kLanes));
  float out = 0;
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    if (!inside(i)) continue;
    const int column = 4 * (lane + i * kLanes);
    const Quad q = unpack(load_quad<kAligned>(p.q + head * p.q_stride + column));
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      s[i][e] += write * k[i][e];
      out += s[i][e] * q[e];
    }
    store_quad<kAligned>(S + column, s[i]);
  }
  out = group_sum(out, kLanes);
  if (lane == 0) p.o[head * p.o_stride + row] = from_float<T>(p.scale * out);
}

template <int kQuads, class T, bool kAligned>
void launch_step(const Context& context, const Step<T>& p, int64_t heads) {
  if constexpr (kQuads < kMaxQuads) {
    if (p.K > 4 * kLanes * kQuads) return launch_step<kQuads + 1, T, kAligned>(context, p, heads);
  }
  launch(context, delta_step_kernel<T, kAligned, kQuads>,
         {dim3(static_cast<unsigned>(p.V / kRows), static_cast<unsigned>(heads)), kThreads, 0}, p);
}

void step(Context& context, const DeltaStep& x) {
  const int64_t B = x.S.dim(0), H = x.S.dim(1), V = x.S.dim(2), K = x.S.dim(3);
  require_head_dims(K, V);
  const bool aligned = quads_aligned({x.S, x.q, x.k});
  visit_compute(context, [&]<class T>(T) {
    const Step<T> p{static_cast<int>(H), static_cast<int>(K), static_cast<int>(V),
                    pointer<float>(x.S), pointer<T>(x.q),     pointer<T>(x.k),
                    pointer<T>(x.v),     pointer<T>(x.o),     pointer<float>(x.beta),
                    pointer<float>(x.g), x.S.stride,          x.q.stride,
                    x.k.stride,          x.v.stride,          x.o.stride,
                    x.beta.stride,       x.g.stride,          static_cast<float>(x.scale)};
    aligned ? launch_step<1, T, true>(context, p, B * H)
            : launch_step<1, T, false>(context, p, B * H);
  });
}

KLA_OP(delta_step, KLA_BACKEND, step);

}  // namespace

}  // namespace kla::KLA_BACKEND
