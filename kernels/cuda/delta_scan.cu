// Forward scan of the gated delta rule in the Y form (KERNEL_MATH 4a), transposed: S^T stays in
// accumulators through all chunks and is never rounded between them (delta_scan.cuh), or in shared
// memory (delta_scan_wide.cuh).
#include "kernels/cuda/delta_scan_wgmma.h"
#include "kernels/cuda/delta_scan_wide.cuh"

namespace kla::KLA_BACKEND {
namespace {

template <class T>
struct ForwardArgs {
  DeltaPointers<T> in;
  T *o, *S_enter;  // S_enter, S_final, S_initial: null if not given
  float* S_final;
  const float* S_initial;
  int slices;
};

// Block i of E X, transposed: what the chunk's end keeps of the writes.
template <class T>
__device__ __forceinline__ OperandA<T> kept_writes(const Accumulator& X, int i,
                                                   const Gates& gates) {
  Accumulator x;
#pragma unroll
  for (int e = 0; e < 8; ++e) x[e] = gates.E[i * kBlock + column_of(e)] * X[e];
  return operand<T>(x);
}

// O = s D (Q S) + P X into the place of the values, and S <- gamma S + (E X)^T K; s is S rounded,
// R holds K S.
template <int kBlocks, class T>
__device__ __forceinline__ void write_state(Accumulator (&S)[kBlocks],
                                            const OperandA<T> (&s)[kBlocks],
                                            Accumulator (&R)[kTokenBlocks], const Tile<T>& q,
                                            const Tile<T>& k, const Tile<T>& values,
                                            const Triangle<T>& Tg, const Triangle<T>& P,
                                            const Gates& gates, float scale) {
  const int column = warp_index() * kBlock;
  OperandA<T> Yb[kTokenBlocks], X[kTokenBlocks], EX[kTokenBlocks];
  forget(R, gates, gates.D);
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j) Yb[j] = weighted_errors(R[j], values, column, j, gates);
#pragma unroll
  for (int i = 0; i < kTokenBlocks; ++i) {
    const Accumulator x = writes(Yb, i, Tg);
    X[i] = operand<T>(x);
    EX[i] = kept_writes<T>(x, i, gates);
  }
  forget(EX, gates, gates.E);
  __syncwarp();  // the values of these columns have been read
#pragma unroll
  for (int first = 0; first < kTokenBlocks; first += 2) {
    Accumulator O[2];
    read_state(s, q, first, O);
    forget(O, gates, gates.D, first);
#pragma unroll
    for (int i = first; i < first + 2; ++i) {
      Accumulator& o = O[i - first];
#pragma unroll
      for (int e = 0; e < 8; ++e) o[e] *= scale * gates.D[i * kBlock + column_of(e)];
#pragma unroll
      for (int j = 0; j <= i; ++j) multiply_add(o, X[j], load_b_transposed(P.block(i, j), 0, 0));
      store_transposed(values, i * kBlock, column, o);
    }
  }
  decay_state(S, gates);
#pragma unroll
  for (int i = 0; i < kTokenBlocks; ++i) add_to_state(S, EX[i], k, i);
}

template <class T, int kK>
__global__ void __launch_bounds__(ScanShape<T, kK>::kThreads, 1) forward_kernel(ForwardArgs<T> a) {
  SharedMemory shared;
  const ScanMemory<T, kK> memory(shared);
  const DeltaPointers<T>& in = a.in;
  const ScanPlace at(in.H, a.slices);
  const ScanFeed<T, kK, false> feed{in, in.v, memory, at};
  Accumulator S[kK / kBlock];
  load_state(S, a.S_initial ? a.S_initial + carried_state(in, at) : nullptr, in.K);
  feed.begin();

#pragma unroll 1
  for (int n = 0; n < in.NC; ++n) {
    feed.enter(n);
    const auto tiles = memory.stage(n);
    const ChunkPlace p = feed.place(n);
    OperandA<T> s[kK / kBlock];
    round_state(S, s);
    if (a.S_enter) store_state(s, a.S_enter + (chunk_index(in, p) * in.V + at.column) * in.K, in.K);
    Accumulator R[kTokenBlocks];
    read_state(s, tiles.k, 0, R);
    write_state(S, s, R, tiles.q, tiles.k, tiles.values, tiles.inverse, tiles.P, *tiles.gates,
                in.scale);
    __syncwarp();
    write_columns(a.o + first_row(in, p) * in.V + at.column, in.H * in.V, p.tokens,
                  Tile<T>{tiles.values.at(0, warp_index() * kBlock), tiles.values.stride});
    feed.leave(n);
  }
  if (a.S_final) store_state(S, a.S_final + carried_state(in, at), in.K);
}

// ---- The state in shared memory ----------------------------------------------------------------

// R += K S and QS += Q S over the keys of a slab, and S to S_enter unless that is null.
template <class T, int kK>
__device__ __forceinline__ void read_slab(const WideMemory<T, kK>& m, const WideFeed<T, kK>& feed,
                                          int slab, T* S_enter, Accumulator (&R)[kTokenBlocks],
                                          Accumulator (&QS)[kTokenBlocks]) {
  const int begin = feed.begin(slab), K = feed.in.K;
#pragma unroll(sizeof(T) == 2 ? 2 : 1)
  for (int c = begin; c < feed.end(slab); ++c) {
    const Accumulator S = m.block(c);
    if (S_enter) store_global(S_enter + c * kBlock, K, kBlock, S);
    const OperandA<T> s = operand<T>(S);
    const int column = (c - begin) * kBlock;
#pragma unroll
    for (int i = 0; i < kTokenBlocks; ++i) {
      multiply_add(R[i], s, load_b_transposed(m.k, i * kBlock, column));
      multiply_add(QS[i], s, load_b_transposed(m.q, i * kBlock, column));
    }
  }
}

// O = s D (Q S) + P X into the place of the values, and E X; R holds K S.
template <class T, int kK>
__device__ __forceinline__ void write_outputs(OperandA<T> (&EX)[kTokenBlocks],
                                              Accumulator (&R)[kTokenBlocks],
                                              Accumulator (&QS)[kTokenBlocks],
                                              const WideMemory<T, kK>& m, float scale) {
  const Gates& gates = *m.gates;
  const int column = warp_index() * kBlock;
  OperandA<T> Yb[kTokenBlocks], X[kTokenBlocks];
  forget(R, gates, gates.D);
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j) Yb[j] = weighted_errors(R[j], m.values, column, j, gates);
#pragma unroll
  for (int i = 0; i < kTokenBlocks; ++i) {
    const Accumulator x = writes(Yb, i, m.inverse);
    X[i] = operand<T>(x);
    EX[i] = kept_writes<T>(x, i, gates);
  }
  forget(EX, gates, gates.E);
  forget(QS, gates, gates.D);
  __syncwarp();  // the values of these columns have been read
#pragma unroll
  for (int i = 0; i < kTokenBlocks; ++i) {
    Accumulator& o = QS[i];
#pragma unroll
    for (int e = 0; e < 8; ++e) o[e] *= scale * gates.D[i * kBlock + column_of(e)];
#pragma unroll
    for (int j = 0; j <= i; ++j) multiply_add(o, X[j], load_b_transposed(m.P.block(i, j), 0, 0));
    store_transposed(m.values, i * kBlock, column, o);
  }
}

// S <- gamma S + (E X)^T K over the keys of a slab.
template <class T, int kK>
__device__ __forceinline__ void write_slab(const WideMemory<T, kK>& m, const WideFeed<T, kK>& feed,
                                           int slab, const OperandA<T> (&EX)[kTokenBlocks]) {
  const int begin = feed.begin(slab);
#pragma unroll(sizeof(T) == 2 ? 2 : 1)
  for (int c = begin; c < feed.end(slab); ++c) {
    Accumulator S[1] = {m.block(c)};
    decay_state(S, *m.gates);
#pragma unroll
    for (int i = 0; i < kTokenBlocks; ++i)
      multiply_add(S[0], EX[i], load_b(m.k, i * kBlock, (c - begin) * kBlock));
    m.set_block(c, S[0]);
  }
}

template <class T, int kK>
__global__ void __launch_bounds__(ScanShape<T, kK>::kThreads, 1)
    wide_forward_kernel(ForwardArgs<T> a) {
  SharedMemory shared;
  const WideMemory<T, kK> memory(shared);
  const DeltaPointers<T>& in = a.in;
  const WideFeed<T, kK> feed{in, in.v, memory};
  const ScanPlace at(in.H, a.slices);
  memory.load_state(a.S_initial ? a.S_initial + carried_state(in, at) : nullptr, in.K);

#pragma unroll 1
  for (int n = 0; n < in.NC; ++n) {
    const ChunkPlace p = chunk_place(in, at.b, n, at.h);
    T* S_enter = a.S_enter ? a.S_enter + (chunk_index(in, p) * in.V + at.column) * in.K : nullptr;
    Accumulator R[kTokenBlocks], QS[kTokenBlocks];
    OperandA<T> EX[kTokenBlocks];
    feed.enter(p, at.column);
#pragma unroll 1
    for (int slab = 0; slab < feed.slabs(); ++slab) {
      if (slab > 0) feed.bring(p, slab);
      feed.add_scores(slab);
      read_slab(memory, feed, slab, S_enter, R, QS);
      __syncthreads();  // the triangles are there, the slab has been read
    }
    write_outputs(EX, R, QS, memory, in.scale);
    __syncwarp();
    write_columns(a.o + first_row(in, p) * in.V + at.column, in.H * in.V, p.tokens,
                  Tile<T>{memory.values.at(0, warp_index() * kBlock), memory.values.stride});
#pragma unroll 1
    for (int slab = feed.slabs() - 1; slab >= 0; --slab) {
      if (slab + 1 < feed.slabs()) feed.bring(p, slab);
      write_slab(memory, feed, slab, EX);
      __syncthreads();
    }
  }
  if (a.S_final) memory.store_state(a.S_final + carried_state(in, at), in.K);
}

template <class T, int kK>
void launch_forward(const Context& context, const DeltaScanForward& a) {
  using Scan = ScanShape<T, kK>;
  const int64_t heads = a.in.q.dim(0) * a.in.q.dim(2), V = a.in.v.dim(3);
  const ScanGrid grid = scan_grid<T, kK>(heads, V);
  const ForwardArgs<T> args{.in = delta_pointers<T>(a.in, V),
                            .o = pointer<T>(a.o),
                            .S_enter = pointer<T>(a.S_enter),
                            .S_final = pointer<float>(a.S_final),
                            .S_initial = pointer<float>(a.S_initial),
                            .slices = grid.slices};
  const auto kernel = [] {
    if constexpr (kStateInShared<T, kK>)
      return wide_forward_kernel<T, kK>;
    else
      return forward_kernel<T, kK>;
  }();
  launch(context, kernel,
         Shape{.grid = dim3(static_cast<unsigned>(heads * grid.slices)),
               .threads = static_cast<unsigned>(32 * grid.warps),
               .shared_bytes = Scan::shared_bytes(grid.warps)},
         args);
}

void delta_scan_forward(Context& context, const DeltaScanForward& a) {
  if (scans_on_warpgroups(context, a.in.q.dim(3), a.in.v.dim(3)))
    return delta_scan_forward_wgmma(context, a);
  visit_head_dims(a.in.q.dim(3), a.in.v.dim(3), [&](auto width) {
    visit_compute(context, [&]<class T>(T) { launch_forward<T, width>(context, a); });
  });
}

KLA_OP(delta_scan_forward, KLA_BACKEND, delta_scan_forward);

}  // namespace
}  // namespace kla::KLA_BACKEND
