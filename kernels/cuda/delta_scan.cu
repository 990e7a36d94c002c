// Forward scan of the gated delta rule in the Y form (KERNEL_MATH 4a), transposed: S^T stays in
// accumulators through all chunks and is never rounded between them (delta_scan.cuh).
#include "kernels/cuda/delta_scan.cuh"
#include "kernels/cuda/delta_scan_wgmma.h"

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

__device__ inline float value(const Accumulator& c, int e) {
  return c[e];
}

// Block i of E X, transposed: what the chunk's end keeps of the writes.
template <class T, class Block>
__device__ __forceinline__ OperandA<T> kept_writes(const Block& X, int i, const Gates& gates) {
  Accumulator x;
#pragma unroll
  for (int e = 0; e < 8; ++e) x[e] = gates.E[i * kBlock + column_of(e)] * value(X, e);
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
  constexpr bool kLate = sizeof(T) == 4;  // X is exact: E X can wait, and takes no registers
  OperandA<T> Yb[kTokenBlocks], X[kTokenBlocks], EX[kTokenBlocks];
  forget(R, gates, gates.D);
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j) Yb[j] = weighted_errors(R[j], values, column, j, gates);
#pragma unroll
  for (int i = 0; i < kTokenBlocks; ++i) {
    const Accumulator x = writes(Yb, i, Tg);
    X[i] = operand<T>(x);
    if (!kLate) EX[i] = kept_writes<T>(x, i, gates);
  }
  if (!kLate) forget(EX, gates, gates.E);
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
  if (kLate) {
#pragma unroll
    for (int i = 0; i < kTokenBlocks; ++i) EX[i] = kept_writes<T>(X[i], i, gates);
    forget(EX, gates, gates.E);
  }
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
  launch(context, forward_kernel<T, kK>,
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
