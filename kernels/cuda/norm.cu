// RMSNorm, forward and backward (KERNEL_MATH 10.8). A block walks a row twice; the second time it
// lies in L1. Backward runs a fixed number of blocks over many rows each, keeps a partial sum of
// the weight's gradient per block, and adds those in order.
#include "kernels/cuda/reduce.cuh"
#include "kernels/ops.h"

namespace kla::KLA_BACKEND {
namespace {

template <class T, int N>
__global__ void rms_norm_forward_kernel(Rows<T> y, float* rstd, Rows<float> x, const float* w,
                                        int64_t D, float eps) {
  SharedMemory shared;
  float* slots = shared.array<float>(kWarp);
  const int64_t m = blockIdx.x, step = int64_t{blockDim.x} * N;
  const int64_t first = int64_t{threadIdx.x} * N;
  float squares = 0;
  for (int64_t c = first; c < D; c += step) {
    float x_c[N];
    load(x_c, x[m] + c);
    for (int i = 0; i < N; ++i) squares += x_c[i] * x_c[i];
  }
  const float r = 1.0f / sqrtf(block_sum(squares, slots) / static_cast<float>(D) + eps);
  if (threadIdx.x == 0) rstd[m] = r;
  for (int64_t c = first; c < D; c += step) {
    float x_c[N], w_c[N];
    load(x_c, x[m] + c);
    load(w_c, w + c);
    for (int i = 0; i < N; ++i) x_c[i] = w_c[i] * (x_c[i] * r);
    store(y[m] + c, x_c);
  }
}

template <class T>
struct BackwardArgs {
  Rows<float> dx;
  Rows<T> dx_copy;        // null: not wanted
  float* partial;         // [blocks,D]: each block's share of dw
  Rows<float> dresidual;  // null: zero
  Rows<T> dy;
  Rows<float> x;
  const float *w, *rstd;
  int M, D, rows_per_block;
  float per_column;  // 1 / D
};

// A thread's share of dw: in registers where it has one vector of columns, otherwise in shared
// memory (D floats, each thread its own columns).
template <int N, bool kOneTurn>
struct WeightGradient {
  float own[N] = {};
  float* shared;
  __device__ float& at(int c, int i) { return kOneTurn ? own[i] : shared[c + i]; }
};

constexpr int kMostThreads = 768;

// kOneTurn: the block's threads hold a whole row, so that it is read once. Two blocks of the most
// threads fit a multiprocessor then, four of 384 (D = 1536), which the grid fills twice.
template <class T, int N, bool kOneTurn>
__global__ void __launch_bounds__(kMostThreads, kOneTurn ? 2 : 1)
    rms_norm_backward_kernel(BackwardArgs<T> a) {
  SharedMemory shared;
  float* slots = shared.array<float>(2 * kWarp);  // of even and odd rows
  WeightGradient<N, kOneTurn> dw;
  if constexpr (!kOneTurn) dw.shared = shared.array<float>(a.D);
  const int step = static_cast<int>(blockDim.x) * N, begin = static_cast<int>(threadIdx.x) * N;
  for (int c = begin; c < a.D; c += step)
    for (int i = 0; i < N; ++i) dw.at(c, i) = 0;

  const int first = static_cast<int>(blockIdx.x) * a.rows_per_block;
  const int last = min(first + a.rows_per_block, a.M);
  float dy[N], x[N], w[N], residual[N] = {};
  if (kOneTurn && begin < a.D) load(w, a.w + begin);
  const auto load_row = [&](int m, int c) {
    load(dy, a.dy.data + elements_before(m, a.dy.stride) + c);
    load(x, a.x.data + elements_before(m, a.x.stride) + c);
    if constexpr (!kOneTurn) load(w, a.w + c);
    if (a.dresidual.data)
      load(residual, a.dresidual.data + elements_before(m, a.dresidual.stride) + c);
  };
  for (int m = first; m < last; ++m) {
    const float r = a.rstd[m];
    float along = 0;
    for (int c = begin; c < a.D; c += step) {
      load_row(m, c);
      for (int i = 0; i < N; ++i) {
        const float dy_xhat = dy[i] * (x[i] * r);
        dw.at(c, i) += dy_xhat;
        along += dy_xhat * w[i];
      }
      if (kOneTurn) break;
    }
    const float mean = block_sum(along, slots + m % 2 * kWarp) * a.per_column;
    for (int c = begin; c < a.D; c += step) {
      if constexpr (!kOneTurn) load_row(m, c);
      float sum[N];
      for (int i = 0; i < N; ++i) sum[i] = residual[i] + r * (dy[i] * w[i] - x[i] * r * mean);
      store(a.dx.data + elements_before(m, a.dx.stride) + c, sum);
      if (a.dx_copy.data) store(a.dx_copy.data + elements_before(m, a.dx_copy.stride) + c, sum);
      if (kOneTurn) break;
    }
  }
  float* share = a.partial + elements_before(static_cast<int>(blockIdx.x), a.D);
  for (int c = begin; c < a.D; c += step)
    for (int i = 0; i < N; ++i) share[c + i] = dw.at(c, i);
}

void forward(Context& context, const RmsNormForward& a) {
  const int64_t M = a.x.rows(), D = a.x.cols();
  visit_compute(context, [&]<class T>(T) {
    visit_width(
        [&]<int N>(Width<N>) {
          const Shape shape{dim3(static_cast<unsigned>(M)), row_threads(D, N),
                            SharedSize().array<float>(kWarp).bytes()};
          launch(context, rms_norm_forward_kernel<T, N>, shape, rows<T>(a.y),
                 pointer<float>(a.rstd), rows<float>(a.x), pointer<float>(a.w), D, a.eps);
        },
        a.y, a.x, a.w);
  });
}

void backward(Context& context, const RmsNormBackward& a) {
  const int64_t M = a.x.rows(), D = a.x.cols(), blocks = partial_sum_blocks(M);
  KLA_CHECK(M < int64_t{1} << 31, "too many rows for 32 bits");
  const ArenaScope scope(*context.scratch);
  const View partial = context.scratch->allocate(DType::f32, {blocks, D});
  visit_compute(context, [&]<class T>(T) {
    const BackwardArgs<T> args{
        .dx = rows<float>(a.dx),
        .dx_copy = rows<T>(a.dx_copy),
        .partial = pointer<float>(partial),
        .dresidual = rows<float>(a.dresidual),
        .dy = rows<T>(a.dy),
        .x = rows<float>(a.x),
        .w = pointer<float>(a.w),
        .rstd = pointer<float>(a.rstd),
        .M = static_cast<int>(M),
        .D = static_cast<int>(D),
        .rows_per_block = static_cast<int>(blocks ? (M + blocks - 1) / blocks : 0),
        .per_column = 1.0f / static_cast<float>(D),
    };
    visit_width<kFloatVector>(
        [&]<int N>(Width<N>) {
          const unsigned threads = row_threads(D, N, kMostThreads);
          const bool one_turn = D <= int64_t{threads} * N;
          SharedSize size;
          size.array<float>(2 * kWarp);
          if (!one_turn) size.array<float>(D);
          launch(context,
                 one_turn ? rms_norm_backward_kernel<T, N, true>
                          : rms_norm_backward_kernel<T, N, false>,
                 Shape{dim3(static_cast<unsigned>(blocks)), threads, size.bytes()}, args);
        },
        a.dx, a.dx_copy, a.dresidual, a.dy, a.x, a.w);
  });
  add_partial_sums(context, partial, a.dw);
}

KLA_OP(rms_norm_forward, KLA_BACKEND, forward);
KLA_OP(rms_norm_backward, KLA_BACKEND, backward);

}  // namespace
}  // namespace kla::KLA_BACKEND
