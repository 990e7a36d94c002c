// SwiGLU, forward and backward (KERNEL_MATH 10.9): a block per row, a vector per thread and turn.
// dgate and dup may be the memory of gate and up.
#include "kernels/cuda/vector.cuh"
#include "kernels/ops.h"

namespace kla::KLA_BACKEND {
namespace {

template <class T, int N>
__global__ void swiglu_forward_kernel(Rows<T> y, Rows<T> gate, Rows<T> up, int64_t F) {
  const int64_t m = blockIdx.x;
  for (int64_t c = int64_t{threadIdx.x} * N; c < F; c += int64_t{blockDim.x} * N) {
    float z[N], u[N];
    load(z, gate[m] + c);
    load(u, up[m] + c);
    for (int i = 0; i < N; ++i) z[i] = silu<T>(z[i]).value * u[i];
    store(y[m] + c, z);
  }
}

template <class T, int N>
__global__ void swiglu_backward_kernel(Rows<T> dgate, Rows<T> dup, Rows<T> dy, Rows<T> gate,
                                       Rows<T> up, int64_t F) {
  const int64_t m = blockIdx.x;
  for (int64_t c = int64_t{threadIdx.x} * N; c < F; c += int64_t{blockDim.x} * N) {
    float z[N], u[N], dout[N];
    load(z, gate[m] + c);
    load(u, up[m] + c);
    load(dout, dy[m] + c);
    for (int i = 0; i < N; ++i) {
      const Silu s = silu<T>(z[i]);
      z[i] = dout[i] * u[i] * s.slope;
      u[i] = dout[i] * s.value;
    }
    store(dgate[m] + c, z);
    store(dup[m] + c, u);
  }
}

void forward(Context& context, const SwigluForward& a) {
  const int64_t M = a.y.rows(), F = a.y.cols();
  visit_compute(context, [&]<class T>(T) {
    visit_width(
        [&]<int N>(Width<N>) {
          launch(context, swiglu_forward_kernel<T, N>,
                 Shape{dim3(static_cast<unsigned>(M)), row_threads(F, N)}, rows<T>(a.y),
                 rows<T>(a.gate), rows<T>(a.up), F);
        },
        a.y, a.gate, a.up);
  });
}

void backward(Context& context, const SwigluBackward& a) {
  const int64_t M = a.dy.rows(), F = a.dy.cols();
  visit_compute(context, [&]<class T>(T) {
    visit_width(
        [&]<int N>(Width<N>) {
          launch(context, swiglu_backward_kernel<T, N>,
                 Shape{dim3(static_cast<unsigned>(M)), row_threads(F, N)}, rows<T>(a.dgate),
                 rows<T>(a.dup), rows<T>(a.dy), rows<T>(a.gate), rows<T>(a.up), F);
        },
        a.dgate, a.dup, a.dy, a.gate, a.up);
  });
}

KLA_OP(swiglu_forward, KLA_BACKEND, forward);
KLA_OP(swiglu_backward, KLA_BACKEND, backward);

}  // namespace
}  // namespace kla::KLA_BACKEND
