// Per-head RMSNorm times silu(gate), forward and backward (KERNEL_MATH 10.7). A row is the V values
// of one token and head; `lanes` neighbouring threads of a warp share it, so that a head of 192
// values keeps 8 threads busy with three vectors each. The weight is shared by all rows: every
// group of lanes keeps a partial sum of its gradient in shared memory, every block one in scratch.
// Backward reads a row twice (the second time from L1) and writes behind the last read, so dgate
// may be the memory of gate.
#include "kernels/cuda/reduce.cuh"
#include "kernels/ops.h"

namespace kla::KLA_BACKEND {
namespace {

constexpr int kThreads = 256;

struct HeadRows {
  int64_t count;  // M H
  unsigned heads, V;
  int lanes;  // threads that share a row

  // Most threads that leave none idle, but no fewer than 4: rows are read in whole sectors.
  static HeadRows of(int64_t M, int64_t H, int64_t V, int N) {
    const int64_t vectors = (V + N - 1) / N;
    int lanes = kWarp;
    while (lanes > 4 && vectors % lanes != 0) lanes /= 2;
    KLA_CHECK(M * H < int64_t{1} << 32, "too many rows for 32 bits");
    return {M * H, static_cast<unsigned>(H), static_cast<unsigned>(V), lanes};
  }
  int groups() const { return kThreads / lanes; }
};

// Where one row starts in matrices of [M,H*V]; lanes behind the last row do nothing but take part
// in shuffles.
struct HeadRow {
  bool exists;
  int64_t m;
  unsigned h, column;

  __device__ HeadRow(const HeadRows& rows, int64_t row) {
    exists = row < rows.count;
    const unsigned r = exists ? static_cast<unsigned>(row) : 0;
    m = r / rows.heads;
    h = r % rows.heads;
    column = h * rows.V;
  }
};

template <class T>
struct ForwardArgs {
  Rows<T> y;
  Rows<float> rstd;
  Rows<T> x, gate;
  const float* w;
  HeadRows rows;
  float eps;
};

template <class T, int N>
__global__ void gated_rms_norm_forward_kernel(ForwardArgs<T> a) {
  const unsigned V = a.rows.V, lanes = static_cast<unsigned>(a.rows.lanes);
  const unsigned lane = threadIdx.x % lanes, group = threadIdx.x / lanes;
  const HeadRow row(a.rows, int64_t{blockIdx.x} * (kThreads / lanes) + group);
  const unsigned end = row.exists ? V : 0;
  const T *x_row = a.x[row.m] + row.column, *gate_row = a.gate[row.m] + row.column;
  float squares = 0;
  for (unsigned c = lane * N; c < end; c += lanes * N) {
    float x[N];
    load(x, x_row + c);
    for (int i = 0; i < N; ++i) squares += x[i] * x[i];
  }
  const float mean = group_sum(squares, a.rows.lanes) / static_cast<float>(V);
  const float r = 1.0f / sqrtf(mean + a.eps);
  if (row.exists && lane == 0) a.rstd[row.m][row.h] = r;
  for (unsigned c = lane * N; c < end; c += lanes * N) {
    float x[N], gate[N], w[N];
    load(x, x_row + c);
    load(gate, gate_row + c);
    load(w, a.w + c);
    for (int i = 0; i < N; ++i) x[i] = w[i] * (x[i] * r) * silu(gate[i]).value;
    store(a.y[row.m] + row.column + c, x);
  }
}

template <class T>
struct BackwardArgs {
  Rows<T> dx, dgate;
  float* partial;  // [blocks,V]: each block's share of dw
  Rows<T> dy, x, gate;
  const float* w;
  Rows<float> rstd;
  HeadRows rows;
};

// One row: dx, dgate, and its share of the weight's gradient into dw, in which this thread's
// columns are its own.
template <class T, int N>
__device__ void backward_row(const BackwardArgs<T>& a, const HeadRow& row, unsigned lane,
                             float* dw) {
  const unsigned step = static_cast<unsigned>(a.rows.lanes) * N, end = row.exists ? a.rows.V : 0;
  const T *x_row = a.x[row.m] + row.column, *dy_row = a.dy[row.m] + row.column;
  const T* gate_row = a.gate[row.m] + row.column;
  const float r = row.exists ? a.rstd[row.m][row.h] : 0;
  float along = 0;
  for (unsigned c = lane * N; c < end; c += step) {
    float x[N], dy[N], gate[N], w[N];
    load(x, x_row + c);
    load(dy, dy_row + c);
    load(gate, gate_row + c);
    load(w, a.w + c);
    for (int i = 0; i < N; ++i) {
      const float share = dy[i] * silu(gate[i]).value * (x[i] * r);
      dw[c + i] += share;
      along += share * w[i];
    }
  }
  const float mean = group_sum(along, a.rows.lanes) / static_cast<float>(a.rows.V);
  for (unsigned c = lane * N; c < end; c += step) {
    float x[N], dy[N], gate[N], w[N];
    load(x, x_row + c);
    load(dy, dy_row + c);
    load(gate, gate_row + c);
    load(w, a.w + c);
    for (int i = 0; i < N; ++i) {
      const Silu z = silu(gate[i]);
      const float xhat = x[i] * r, dy_w = dy[i] * w[i];
      gate[i] = dy_w * xhat * z.slope;
      x[i] = r * (dy_w * z.value - xhat * mean);
    }
    store(a.dgate[row.m] + row.column + c, gate);
    store(a.dx[row.m] + row.column + c, x);
  }
}

template <class T, int N>
__global__ void gated_rms_norm_backward_kernel(BackwardArgs<T> a) {
  SharedMemory shared;
  const unsigned V = a.rows.V, lanes = static_cast<unsigned>(a.rows.lanes);
  const unsigned lane = threadIdx.x % lanes, group = threadIdx.x / lanes;
  const unsigned groups = kThreads / lanes;
  float* sums = shared.array<float>(static_cast<int>(groups * V));
  float* dw = sums + group * V;
  for (unsigned c = lane * N; c < V; c += lanes * N)
    for (int i = 0; i < N; ++i) dw[c + i] = 0;
  for (int64_t first = int64_t{blockIdx.x} * groups; first < a.rows.count;
       first += int64_t{gridDim.x} * groups)
    backward_row<T, N>(a, HeadRow(a.rows, first + group), lane, dw);
  __syncthreads();
  for (unsigned c = threadIdx.x; c < V; c += kThreads) {
    float total = 0;
    for (unsigned g = 0; g < groups; ++g) total += sums[g * V + c];
    a.partial[blockIdx.x * V + c] = total;
  }
}

void forward(Context& context, const GatedRmsNormForward& a) {
  const int64_t M = a.x.rows(), V = a.w.size(), H = a.x.cols() / V;
  visit_compute(context, [&]<class T>(T) {
    visit_width(
        [&]<int N>(Width<N>) {
          const HeadRows heads = HeadRows::of(M, H, V, N);
          const int64_t blocks = (heads.count + heads.groups() - 1) / heads.groups();
          const Shape shape{dim3(static_cast<unsigned>(blocks)), kThreads};
          launch(context, gated_rms_norm_forward_kernel<T, N>, shape,
                 ForwardArgs<T>{rows<T>(a.y), rows<float>(a.rstd), rows<T>(a.x), rows<T>(a.gate),
                                pointer<float>(a.w), heads, static_cast<float>(a.eps)});
        },
        a.y, a.x, a.gate, a.w);
  });
}

void backward(Context& context, const GatedRmsNormBackward& a) {
  const int64_t M = a.x.rows(), V = a.w.size(), H = a.x.cols() / V;
  const int64_t blocks = partial_sum_blocks((M * H + kThreads / kWarp - 1) / (kThreads / kWarp));
  const ArenaScope scope(*context.scratch);
  const View partial = context.scratch->allocate(DType::f32, {blocks, V});
  visit_compute(context, [&]<class T>(T) {
    visit_width(
        [&]<int N>(Width<N>) {
          const HeadRows heads = HeadRows::of(M, H, V, N);
          const Shape shape{dim3(static_cast<unsigned>(blocks)), kThreads,
                            SharedSize().array<float>(heads.groups() * V).bytes()};
          launch(context, gated_rms_norm_backward_kernel<T, N>, shape,
                 BackwardArgs<T>{rows<T>(a.dx), rows<T>(a.dgate), pointer<float>(partial),
                                 rows<T>(a.dy), rows<T>(a.x), rows<T>(a.gate), pointer<float>(a.w),
                                 rows<float>(a.rstd), heads});
        },
        a.dx, a.dgate, a.dy, a.x, a.gate, a.w);
  });
  add_partial_sums(context, partial, a.dw);
}

KLA_OP(gated_rms_norm_forward, KLA_BACKEND, forward);
KLA_OP(gated_rms_norm_backward, KLA_BACKEND, backward);

}  // namespace
}  // namespace kla::KLA_BACKEND
