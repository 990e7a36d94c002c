// Reverse scan of the gated delta rule: the gradient of the state, chunk by chunk from the last
// (KERNEL_MATH 6, equations 1, 2, 4, 10). The forward scan mirrored: dS^T stays in accumulators
// (delta_scan.cuh), or in shared memory (delta_scan_wide.cuh).
#include "kernels/cuda/delta_scan_wgmma.h"
#include "kernels/cuda/delta_scan_wide.cuh"

namespace kla::KLA_BACKEND {
namespace {

template <class T>
struct ReverseArgs {
  DeltaPointers<T> in;  // v is null
  const T* dout;
  T* dS_leave;
  float* dS_initial;  // null if not given, as dS_final
  const float* dS_final;
  int slices;
};

// dS <- gamma dS + s (D dO)^T Q + dR^T K, dR = -D beta N: from the leaving to the entering state.
template <int kBlocks, class T>
__device__ __forceinline__ void write_gradient(Accumulator (&dS)[kBlocks],
                                               Accumulator (&KdS)[kTokenBlocks],
                                               const Tile<T>& dout, const Tile<T>& q,
                                               const Tile<T>& k, const Triangle<T>& Tg,
                                               const Triangle<T>& P, const Gates& gates,
                                               float scale) {
  const int column = warp_index() * kBlock;
  OperandA<T> dX[kTokenBlocks];
  forget(KdS, gates, gates.E);
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j) dX[j] = write_gradients(KdS[j], dout, column, j, P, gates);
  decay_state(dS, gates);
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j) {
    Accumulator through[2] = {error_gradients(dX, j, Tg), {}};  // k and q
    const OperandA<T> d = load_a_transposed(dout, column, j * kBlock);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int t = j * kBlock + column_of(e);
      through[0][e] *= -gates.D[t] * gates.beta[t];
      through[1][e] = scale * gates.D[t] * value(d, e);
    }
    if (gates.resets != 0) {
#pragma unroll
      for (int e = 0; e < 8; ++e)
        if (gates.D[j * kBlock + column_of(e)] == 0) through[0][e] = through[1][e] = 0;
    }
    add_to_state(dS, operand<T>(through[0]), k, j);
    add_to_state(dS, operand<T>(through[1]), q, j);
  }
}

template <class T, int kK>
__global__ void __launch_bounds__(ScanShape<T, kK>::kThreads, 1) reverse_kernel(ReverseArgs<T> a) {
  SharedMemory shared;
  const ScanMemory<T, kK> memory(shared);
  const DeltaPointers<T>& in = a.in;
  const ScanPlace at(in.H, a.slices);
  const ScanFeed<T, kK, true> feed{in, a.dout, memory, at};
  Accumulator dS[kK / kBlock];
  load_state(dS, a.dS_final ? a.dS_final + carried_state(in, at) : nullptr, in.K);
  feed.begin();

#pragma unroll 1
  for (int step = 0; step < in.NC; ++step) {
    feed.enter(step);
    const auto tiles = memory.stage(step);
    OperandA<T> s[kK / kBlock];
    round_state(dS, s);
    store_state(s, a.dS_leave + (chunk_index(in, feed.place(step)) * in.V + at.column) * in.K,
                in.K);
    Accumulator KdS[kTokenBlocks];
    read_state(s, tiles.k, 0, KdS);
    write_gradient(dS, KdS, tiles.values, tiles.q, tiles.k, tiles.inverse, tiles.P, *tiles.gates,
                   in.scale);
    feed.leave(step);
  }
  if (a.dS_initial) store_state(dS, a.dS_initial + carried_state(in, at), in.K);
}

// ---- The state in shared memory ----------------------------------------------------------------

// dR_j = -D beta N and s D dO of 16 tokens, as left operands: what the state's gradient takes.
template <class T>
struct StateTerms {
  OperandA<T> dR, read;
};

template <class T, int kK>
__device__ __forceinline__ void state_terms(StateTerms<T> (&terms)[kTokenBlocks],
                                            Accumulator (&KdS)[kTokenBlocks],
                                            const WideMemory<T, kK>& m, float scale) {
  const Gates& gates = *m.gates;
  const int column = warp_index() * kBlock;
  OperandA<T> dX[kTokenBlocks];
  forget(KdS, gates, gates.E);
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j)
    dX[j] = write_gradients(KdS[j], m.values, column, j, m.P, gates);
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j) {
    Accumulator dR = error_gradients(dX, j, m.inverse), read;
    const OperandA<T> d = load_a_transposed(m.values, column, j * kBlock);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int t = j * kBlock + column_of(e);
      dR[e] *= -gates.D[t] * gates.beta[t];
      read[e] = scale * gates.D[t] * value(d, e);
    }
    if (gates.resets != 0) {
#pragma unroll
      for (int e = 0; e < 8; ++e)
        if (gates.D[j * kBlock + column_of(e)] == 0) dR[e] = read[e] = 0;
    }
    terms[j] = {operand<T>(dR), operand<T>(read)};
  }
}

// KdS += K dS over the keys of a slab, and dS to dS_leave.
template <class T, int kK>
__device__ __forceinline__ void read_slab(const WideMemory<T, kK>& m, const WideFeed<T, kK>& feed,
                                          int slab, T* dS_leave, Accumulator (&KdS)[kTokenBlocks]) {
  const int begin = feed.begin(slab), K = feed.in.K;
#pragma unroll(sizeof(T) == 2 ? 2 : 1)
  for (int c = begin; c < feed.end(slab); ++c) {
    const Accumulator dS = m.block(c);
    store_global(dS_leave + c * kBlock, K, kBlock, dS);
    const OperandA<T> s = operand<T>(dS);
#pragma unroll
    for (int i = 0; i < kTokenBlocks; ++i)
      multiply_add(KdS[i], s, load_b_transposed(m.k, i * kBlock, (c - begin) * kBlock));
  }
}

// dS <- gamma dS + s (D dO)^T Q + dR^T K over the keys of a slab.
template <class T, int kK>
__device__ __forceinline__ void write_slab(const WideMemory<T, kK>& m, const WideFeed<T, kK>& feed,
                                           int slab, const StateTerms<T> (&terms)[kTokenBlocks]) {
  const int begin = feed.begin(slab);
#pragma unroll(sizeof(T) == 2 ? 2 : 1)
  for (int c = begin; c < feed.end(slab); ++c) {
    Accumulator dS[1] = {m.block(c)};
    decay_state(dS, *m.gates);
#pragma unroll
    for (int j = 0; j < kTokenBlocks; ++j) {
      multiply_add(dS[0], terms[j].dR, load_b(m.k, j * kBlock, (c - begin) * kBlock));
      multiply_add(dS[0], terms[j].read, load_b(m.q, j * kBlock, (c - begin) * kBlock));
    }
    m.set_block(c, dS[0]);
  }
}

template <class T, int kK>
__global__ void __launch_bounds__(ScanShape<T, kK>::kThreads, 1)
    wide_reverse_kernel(ReverseArgs<T> a) {
  SharedMemory shared;
  const WideMemory<T, kK> memory(shared);
  const DeltaPointers<T>& in = a.in;
  const WideFeed<T, kK> feed{in, a.dout, memory};
  const ScanPlace at(in.H, a.slices);
  memory.load_state(a.dS_final ? a.dS_final + carried_state(in, at) : nullptr, in.K);

#pragma unroll 1
  for (int n = in.NC - 1; n >= 0; --n) {
    const ChunkPlace p = chunk_place(in, at.b, n, at.h);
    Accumulator KdS[kTokenBlocks];
    StateTerms<T> terms[kTokenBlocks];
    feed.enter(p, at.column);
#pragma unroll 1
    for (int slab = 0; slab < feed.slabs(); ++slab) {
      if (slab > 0) feed.bring(p, slab);
      feed.add_scores(slab);
      read_slab(memory, feed, slab, a.dS_leave + (chunk_index(in, p) * in.V + at.column) * in.K,
                KdS);
      __syncthreads();  // the triangles are there, the slab has been read
    }
    state_terms(terms, KdS, memory, in.scale);
#pragma unroll 1
    for (int slab = feed.slabs() - 1; slab >= 0; --slab) {
      if (slab + 1 < feed.slabs()) feed.bring(p, slab);
      write_slab(memory, feed, slab, terms);
      __syncthreads();
    }
  }
  if (a.dS_initial) memory.store_state(a.dS_initial + carried_state(in, at), in.K);
}

template <class T, int kK>
void launch_reverse(const Context& context, const DeltaReverseScan& a) {
  using Scan = ScanShape<T, kK>;
  const int64_t heads = a.in.q.dim(0) * a.in.q.dim(2), V = a.dout.dim(3);
  const ScanGrid grid = scan_grid<T, kK>(heads, V);
  const ReverseArgs<T> args{.in = delta_pointers<T>(a.in, V),
                            .dout = pointer<T>(a.dout),
                            .dS_leave = pointer<T>(a.dS_leave),
                            .dS_initial = pointer<float>(a.dS_initial),
                            .dS_final = pointer<float>(a.dS_final),
                            .slices = grid.slices};
  const auto kernel = [] {
    if constexpr (kStateInShared<T, kK>)
      return wide_reverse_kernel<T, kK>;
    else
      return reverse_kernel<T, kK>;
  }();
  launch(context, kernel,
         Shape{.grid = dim3(static_cast<unsigned>(heads * grid.slices)),
               .threads = static_cast<unsigned>(32 * grid.warps),
               .shared_bytes = Scan::shared_bytes(grid.warps)},
         args);
}

void delta_reverse_scan(Context& context, const DeltaReverseScan& a) {
  if (scans_on_warpgroups(context, a.in.q.dim(3), a.dout.dim(3)))
    return delta_reverse_scan_wgmma(context, a);
  visit_head_dims(a.in.q.dim(3), a.dout.dim(3), [&](auto width) {
    visit_compute(context, [&]<class T>(T) { launch_reverse<T, width>(context, a); });
  });
}

KLA_OP(delta_reverse_scan, KLA_BACKEND, delta_reverse_scan);

}  // namespace
}  // namespace kla::KLA_BACKEND
