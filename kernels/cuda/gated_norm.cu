// Per-head RMSNorm times silu(gate), forward and backward (KERNEL_MATH 10.7). A row is the V values
// of one token and head; `lanes` neighbouring threads of a warp share it, so that a head of 192
// values keeps 8 threads busy with three vectors each. Where a thread has at most three vectors of
// a row, it loads them all at once and keeps them, packed, for both passes; longer rows are read
// twice, the second time from L1. Backward writes behind the last read, so dgate may be the memory
// of gate. The weight is shared by all rows: every thread keeps a partial sum of its columns'
// gradient, every block one in scratch.
#include "kernels/cuda/reduce.cuh"
#include "kernels/ops.h"

namespace kla::KLA_BACKEND {
namespace {

constexpr int kThreads = 256;

struct HeadRows {
  int64_t count;  // M H
  Divisor heads;
  int V;
  Divisor lanes;      // threads that share a row
  int turns, groups;  // vectors of each; rows that a block takes at once

  // Most threads that leave none idle, but no fewer than 4: rows are read in whole sectors.
  static HeadRows of(int64_t M, int64_t H, int64_t V, int N) {
    const int vectors = static_cast<int>((V + N - 1) / N);
    int lanes = kWarp;
    while (lanes > 4 && vectors % lanes != 0) lanes /= 2;
    KLA_CHECK(M * H < int64_t{1} << 31, "too many rows for 32 bits");
    return {M * H,          Divisor(static_cast<int>(H)),  static_cast<int>(V),
            Divisor(lanes), (vectors + lanes - 1) / lanes, kThreads / lanes};
  }
};

// A thread's part of a row: its vectors lie every `step` elements before `end` from the first one
// on, which stands at `column` of row m in matrices of [M,H*V]. Lanes behind the last row have no
// vectors, but take part in shuffles.
struct RowPlace {
  bool leads;  // the row's first lane
  int m, h, column, step, end;

  __device__ RowPlace(const HeadRows& rows, int64_t row, int lane, int N)
      : step(rows.lanes.by * N) {
    const bool exists = row < rows.count;
    const auto place = rows.heads.divide(exists ? static_cast<unsigned>(row) : 0);
    m = place.quotient;
    h = place.rest;
    column = h * rows.V + lane * N;
    end = exists ? rows.V - lane * N : 0;
    leads = exists && lane == 0;
  }
  template <class T>
  __device__ T* in(const Rows<T>& matrix) const {
    return matrix.data + elements_before(m, matrix.stride) + column;
  }
};

// visit(turn, c) for each of a thread's vectors, c elements behind the first; at most kTurns, 0:
// any number.
template <int kTurns, class Visit>
__device__ void visit_vectors(int step, int end, Visit&& visit) {
  if constexpr (kTurns > 0) {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn)
      if (turn * step < end) visit(turn, turn * step);
  } else {
    for (int c = 0; c < end; c += step) visit(0, c);
  }
}

// A thread's vectors of a row of one matrix: kept, packed, or read at each use.
template <class T, int N, int kTurns>
struct RowPart {
  const T* row;
  Packed<T, N> kept[kTurns > 0 ? kTurns : 1];

  __device__ RowPart(const Rows<T>& matrix, const RowPlace& at) : row(at.in(matrix)) {
    if constexpr (kTurns > 0)
      visit_vectors<kTurns>(at.step, at.end,
                            [&](int turn, int c) { kept[turn] = load_packed<N>(row + c); });
  }
  __device__ void get(float (&values)[N], int turn, int c) const {
    if constexpr (kTurns > 0)
      unpack(values, kept[turn]);
    else
      load(values, row + c);
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

template <class T, int N, int kTurns>
__global__ void gated_rms_norm_forward_kernel(ForwardArgs<T> a) {
  const auto [group, lane] = a.rows.lanes.divide(threadIdx.x);
  const RowPlace at(a.rows, int64_t{blockIdx.x} * a.rows.groups + group, lane, N);
  const RowPart<T, N, kTurns> x_part(a.x, at), gate_part(a.gate, at);
  float squares = 0;
  visit_vectors<kTurns>(at.step, at.end, [&](int turn, int c) {
    float x[N];
    x_part.get(x, turn, c);
    for (int i = 0; i < N; ++i) squares += x[i] * x[i];
  });
  const float mean = group_sum(squares, a.rows.lanes.by) / static_cast<float>(a.rows.V);
  const float r = 1.0f / sqrtf(mean + a.eps);
  if (at.leads) a.rstd[at.m][at.h] = r;
  const float* w_part = a.w + lane * N;
  T* y_part = at.in(a.y);
  visit_vectors<kTurns>(at.step, at.end, [&](int turn, int c) {
    float x[N], gate[N], w[N];
    x_part.get(x, turn, c);
    gate_part.get(gate, turn, c);
    load(w, w_part + c);
    for (int i = 0; i < N; ++i) x[i] = w[i] * (x[i] * r) * silu<T>(gate[i]).value;
    store(y_part + c, x);
  });
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

// The gradient of a thread's columns of the weight: in registers where the thread keeps its part of
// a row; else in its group's row of shared memory, where all end.
template <int N, int kTurns>
struct WeightGradient {
  float own[kTurns > 0 ? kTurns : 1][N];
  float* shared;  // the thread's first column

  __device__ WeightGradient(float* first, int step, int end) : shared(first) {
    visit_vectors<kTurns>(step, end, [&](int turn, int c) {
      for (int i = 0; i < N; ++i) at(turn, c, i) = 0;
    });
  }
  __device__ float& at(int turn, int c, int i) { return kTurns > 0 ? own[turn][i] : shared[c + i]; }
  __device__ void finish(int step, int end) {
    if constexpr (kTurns > 0)
      visit_vectors<kTurns>(step, end, [&](int turn, int c) { store(shared + c, own[turn]); });
  }
};

// One row: dx, dgate, and its share of the weight's gradient.
template <class T, int N, int kTurns>
__device__ void backward_row(const BackwardArgs<T>& a, const RowPlace& at, const float* w_part,
                             WeightGradient<N, kTurns>& dw) {
  const RowPart<T, N, kTurns> x_part(a.x, at), dy_part(a.dy, at), gate_part(a.gate, at);
  const float r = a.rstd[at.m][at.h];
  float along = 0;
  visit_vectors<kTurns>(at.step, at.end, [&](int turn, int c) {
    float x[N], dy[N], gate[N], w[N];
    x_part.get(x, turn, c);
    dy_part.get(dy, turn, c);
    gate_part.get(gate, turn, c);
    load(w, w_part + c);
    for (int i = 0; i < N; ++i) {
      const float share = dy[i] * silu<T>(gate[i]).value * (x[i] * r);
      dw.at(turn, c, i) += share;
      along += share * w[i];
    }
  });
  const float mean = group_sum(along, a.rows.lanes.by) / static_cast<float>(a.rows.V);
  T *dx_part = at.in(a.dx), *dgate_part = at.in(a.dgate);
  visit_vectors<kTurns>(at.step, at.end, [&](int turn, int c) {
    float x[N], dy[N], gate[N], w[N];
    x_part.get(x, turn, c);
    dy_part.get(dy, turn, c);
    gate_part.get(gate, turn, c);
    load(w, w_part + c);
    for (int i = 0; i < N; ++i) {
      const Silu z = silu<T>(gate[i]);
      const float xhat = x[i] * r, dy_w = dy[i] * w[i];
      gate[i] = dy_w * xhat * z.slope;
      x[i] = r * (dy_w * z.value - xhat * mean);
    }
    store(dgate_part + c, gate);
    store(dx_part + c, x);
  });
}

template <class T, int N, int kTurns>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 2 : 1)
    gated_rms_norm_backward_kernel(BackwardArgs<T> a) {
  SharedMemory shared;
  const int V = a.rows.V, groups = a.rows.groups, step = a.rows.lanes.by * N;
  const auto [group, lane] = a.rows.lanes.divide(threadIdx.x);
  float* sums = shared.array<float>(groups * V);
  WeightGradient<N, kTurns> dw(sums + group * V + lane * N, step, V - lane * N);
  for (int64_t row = int64_t{blockIdx.x} * groups; row < a.rows.count;
       row += int64_t{gridDim.x} * groups)
    backward_row<T, N, kTurns>(a, RowPlace(a.rows, row + group, lane, N), a.w + lane * N, dw);
  dw.finish(step, V - lane * N);
  __syncthreads();
  for (int c = static_cast<int>(threadIdx.x); c < V; c += kThreads) {
    float total = 0;
    for (int g = 0; g < groups; ++g) total += sums[g * V + c];
    a.partial[int64_t{blockIdx.x} * V + c] = total;
  }
}

// Calls visit(Width<kTurns>{}): how many vectors of a row each thread keeps.
template <int N, class Visit>
void visit_turns(const HeadRows& rows, Visit&& visit) {
  if constexpr (N > 1) {
    if (rows.turns == 1) return visit(Width<1>{});
    if (rows.turns <= 3) return visit(Width<3>{});
  }
  visit(Width<0>{});
}

void forward(Context& context, const GatedRmsNormForward& a) {
  const int64_t M = a.x.rows(), V = a.w.size(), H = a.x.cols() / V;
  visit_compute(context, [&]<class T>(T) {
    visit_width(
        [&]<int N>(Width<N>) {
          const HeadRows heads = HeadRows::of(M, H, V, N);
          const int64_t blocks = (heads.count + heads.groups - 1) / heads.groups;
          const Shape shape{dim3(static_cast<unsigned>(blocks)), kThreads};
          const ForwardArgs<T> args{rows<T>(a.y),
                                    rows<float>(a.rstd),
                                    rows<T>(a.x),
                                    rows<T>(a.gate),
                                    pointer<float>(a.w),
                                    heads,
                                    static_cast<float>(a.eps)};
          visit_turns<N>(heads, [&]<int kTurns>(Width<kTurns>) {
            launch(context, gated_rms_norm_forward_kernel<T, N, kTurns>, shape, args);
          });
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
                            SharedSize().array<float>(heads.groups * V).bytes()};
          const BackwardArgs<T> args{
              rows<T>(a.dx),       rows<T>(a.dgate),    pointer<float>(partial),
              rows<T>(a.dy),       rows<T>(a.x),        rows<T>(a.gate),
              pointer<float>(a.w), rows<float>(a.rstd), heads};
          visit_turns<N>(heads, [&]<int kTurns>(Width<kTurns>) {
            launch(context, gated_rms_norm_backward_kernel<T, N, kTurns>, shape, args);
          });
        },
        a.dx, a.dgate, a.dy, a.x, a.gate, a.w);
  });
  add_partial_sums(context, partial, a.dw);
}

KLA_OP(gated_rms_norm_forward, KLA_BACKEND, forward);
KLA_OP(gated_rms_norm_backward, KLA_BACKEND, backward);

}  // namespace
}  // namespace kla::KLA_BACKEND
