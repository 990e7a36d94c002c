// Both scans of the delta rule on warpgroups (wgmma.cuh): delta_scan.cu and delta_reverse_scan.cu
// state the mathematics, this is the form for what models are trained with. A warpgroup owns 64
// columns of V: S^T [64 x K] stays in its accumulators. Its products take their left operand from
// registers and all of a token tile from shared memory at once, where the kernels for mma.sync load
// every block of it again in every warp.
#include "kernels/cuda/delta_scan_wgmma.cuh"
#include "kernels/cuda/delta_scan_wgmma.h"

namespace kla::KLA_BACKEND {
namespace {

// ---- Forward -----------------------------------------------------------------------------------

struct ForwardArgs {
  DeltaPointers<bfloat16> in;
  bfloat16 *o, *S_enter;  // S_enter, S_final, S_initial: null if not given
  float* S_final;
  const float* S_initial;
};

// beta o Y of the warp's 16 columns of V, transposed, with Y = V - D R.
template <bool kResets>
__device__ __forceinline__ void weighted_errors(const Accumulator (&R)[kTokenBlocks],
                                                const Tile<bfloat16>& v, int column,
                                                const Gates& gates,
                                                OperandA<bfloat16> (&Yb)[kTokenBlocks]) {
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j) {
    const OperandA<bfloat16> values = load_a_transposed(v, column, j * kBlock);
    Accumulator y;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int t = j * kBlock + column_of(e);
      const float D = gates.D[t];
      y[e] = gates.beta[t] * (value(values, e) - D * passed<kResets>(D, R[j][e]));
    }
    Yb[j] = operand<bfloat16>(y);
  }
}

// The warp's 16 columns of O, through the place of the values they have been made from.
__device__ __forceinline__ void write_outputs(const Accumulator (&o)[kTokenBlocks], bfloat16* to,
                                              int stride, int rows, const Tile<bfloat16>& values,
                                              int column) {
  __syncwarp();  // the values of these columns have been read
#pragma unroll
  for (int i = 0; i < kTokenBlocks; ++i)
    store_transposed(values, i * kBlock, column, o[place_of<true>(i)]);
  __syncwarp();
  write_columns(to, stride, rows, Tile<bfloat16>{values.at(0, column), values.stride});
}

template <bool kResets, int kGroups>
__device__ __forceinline__ void forward_step(const ForwardArgs& a, const Feed<false, kGroups>& feed,
                                             int n, GateInputs& coming,
                                             Accumulator (&S)[kKeyBlocks]) {
  const DeltaPointers<bfloat16>& in = a.in;
  const auto tiles = feed.memory.stage(n);
  const Gates& gates = *tiles.gates;
  const ChunkPlace p = feed.place(n);
  const int column = thread_index() / 32 * kBlock;
  OperandA<bfloat16> s[kKeyBlocks], X[kTokenBlocks], EX[kTokenBlocks];
  Accumulator c[kTokenBlocks];  // K S, X, then O
  round_state(S, s);
  warpgroup_begin();
  read_state(s, tiles.k, c);
  warpgroup_commit();
  if (a.S_enter)
    store_state(s, a.S_enter + (chunk_index(in, p) * in.V + feed.at().column) * in.K, in.K);
  decay<kResets>(S, gates);
  feed.gates(n + 2, coming);
  warpgroup_wait<0>();

  weighted_errors<kResets>(c, tiles.values, column, gates, X);
  warpgroup_begin();
  multiply_lower<false>(c, X, tiles.inverse);
  warpgroup_commit();
  feed.copy_keys(n + 2);
  warpgroup_wait<0>();

  round_tokens<true>(c, X);
  scale_tokens<true, kResets>(c, gates.E, 1);
  round_tokens<true>(c, EX);
  warpgroup_begin();
  read_state(s, tiles.q.tile, c);
  warpgroup_commit();
  feed.copy_values(n + 2);
  warpgroup_wait<0>();

  scale_tokens<true, kResets>(c, gates.D, in.scale);
  warpgroup_begin();
  multiply_lower<true>(c, X, tiles.P);
  warpgroup_commit();
  warpgroup_begin();
  add_to_state(S, EX, tiles.k);
  warpgroup_commit();
  warpgroup_wait<1>();
  write_outputs(c, a.o + first_row(in, p) * in.V + feed.at().column, in.H * in.V, p.tokens,
                tiles.values, column);
  feed.triangles(n + 1);
  coming = feed.gate_inputs(n + 3);
  warpgroup_wait<0>();
}

template <int kGroups>
__global__ void __launch_bounds__(kGroupThreads* kGroups, 1)
    scan_forward_wgmma_kernel(ForwardArgs a) {
  SharedMemory shared;
  const Memory<kGroups> memory(shared);
  const DeltaPointers<bfloat16>& in = a.in;
  const Feed<false, kGroups> feed{in, in.v, memory};
  Accumulator S[kKeyBlocks];
  load_state(S, a.S_initial ? a.S_initial + carried_state(in, feed.at()) : nullptr, in.K);
  feed.begin();
  GateInputs coming = feed.gate_inputs(2);
#pragma unroll 1
  for (int n = 0; n < in.NC; ++n) {
    feed.meet();
    if (memory.stage(n).gates->resets == 0)
      forward_step<false>(a, feed, n, coming, S);
    else
      forward_step<true>(a, feed, n, coming, S);
  }
  if (a.S_final) store_state(S, a.S_final + carried_state(in, feed.at()), in.K);
}

// ---- Reverse -----------------------------------------------------------------------------------

struct ReverseArgs {
  DeltaPointers<bfloat16> in;  // v is null
  const bfloat16* dout;
  bfloat16* dS_leave;
  float* dS_initial;  // null if not given, as dS_final
  const float* dS_final;
};

template <bool kResets, int kGroups>
__device__ __forceinline__ void reverse_step(const ReverseArgs& a, const Feed<true, kGroups>& feed,
                                             int step, GateInputs& coming,
                                             Accumulator (&dS)[kKeyBlocks]) {
  const DeltaPointers<bfloat16>& in = a.in;
  const auto tiles = feed.memory.stage(step);
  const Gates& gates = *tiles.gates;
  const int column = thread_index() / 32 * kBlock;
  OperandA<bfloat16> s[kKeyBlocks], d[kTokenBlocks], reads[kTokenBlocks], dX[kTokenBlocks];
  Accumulator c[kTokenBlocks];  // dX, then N
  round_state(dS, s);
  warpgroup_begin();
  read_state(s, tiles.k, c);
  warpgroup_commit();
  feed.gates(step + 2, coming);
  store_state(s, a.dS_leave + (chunk_index(in, feed.place(step)) * in.V + feed.at().column) * in.K,
              in.K);
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j) d[j] = load_a_transposed(tiles.values, column, j * kBlock);
  decay<kResets>(dS, gates);
  warpgroup_wait<0>();

  scale_tokens<false, kResets>(c, gates.E, 1);
  warpgroup_begin();
  multiply_upper<true>(c, d, tiles.P);
  warpgroup_commit();
  feed.copy_keys(step + 2);
  warpgroup_wait<0>();

  round_tokens<false>(c, dX);
  warpgroup_begin();
  multiply_upper<false>(c, dX, tiles.inverse);
  warpgroup_commit();
  // What is read of the state, s D dO.
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j) {
    Accumulator read;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float D = gates.D[j * kBlock + column_of(e)];
      read[e] = passed<kResets>(D, in.scale * D * value(d[j], e));
    }
    reads[place_of<true>(j)] = operand<bfloat16>(read);
  }
  warpgroup_begin();
  add_to_state(dS, reads, tiles.q.tile);
  warpgroup_commit();
  feed.copy_values(step + 2);
  warpgroup_wait<1>();

  // dR = -D beta N, in the place of dX.
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int t = j * kBlock + column_of(e);
      const float D = gates.D[t];
      c[j][e] = passed<kResets>(D, -D * gates.beta[t] * c[j][e]);
    }
    dX[j] = operand<bfloat16>(c[j]);
  }
  warpgroup_begin();
  add_to_state(dS, dX, tiles.k);
  warpgroup_commit();
  feed.triangles(step + 1);
  coming = feed.gate_inputs(step + 3);
  warpgroup_wait<0>();
}

template <int kGroups>
__global__ void __launch_bounds__(kGroupThreads* kGroups, 1)
    reverse_scan_wgmma_kernel(ReverseArgs a) {
  SharedMemory shared;
  const Memory<kGroups> memory(shared);
  const DeltaPointers<bfloat16>& in = a.in;
  const Feed<true, kGroups> feed{in, a.dout, memory};
  Accumulator dS[kKeyBlocks];
  load_state(dS, a.dS_final ? a.dS_final + carried_state(in, feed.at()) : nullptr, in.K);
  feed.begin();
  GateInputs coming = feed.gate_inputs(2);
#pragma unroll 1
  for (int step = 0; step < in.NC; ++step) {
    feed.meet();
    if (memory.stage(step).gates->resets == 0)
      reverse_step<false>(a, feed, step, coming, dS);
    else
      reverse_step<true>(a, feed, step, coming, dS);
  }
  if (a.dS_initial) store_state(dS, a.dS_initial + carried_state(in, feed.at()), in.K);
}

// ---- Launch ------------------------------------------------------------------------------------

struct Grid {
  int slices, groups;
};

// Warpgroups of a block: as many as it takes, in equal shares of a head.
Grid warpgroup_grid(int64_t V) {
  const int columns = static_cast<int>(V / kGroupColumns);
  int groups = std::min(columns, kMostGroups);
  while (columns % groups != 0) --groups;
  return {columns / groups, groups};
}

// Calls visit with the number of warpgroups as a constant.
template <class Visit>
void visit_groups(int groups, Visit&& visit) {
  static_assert(kMostGroups == 3);
  if (groups == 1) return visit(std::integral_constant<int, 1>{});
  if (groups == 2) return visit(std::integral_constant<int, 2>{});
  visit(std::integral_constant<int, 3>{});
}

template <int kGroups>
Shape shape_of(const View& q, const Grid& grid) {
  return {.grid = dim3(static_cast<unsigned>(grid.slices), static_cast<unsigned>(q.dim(2)),
                       static_cast<unsigned>(q.dim(0))),
          .threads = static_cast<unsigned>(kGroupThreads * kGroups),
          .shared_bytes = Memory<kGroups>::bytes()};
}

}  // namespace

bool scans_on_warpgroups(const Context& context, int64_t K, int64_t V) {
  return context.compute == DType::bf16 && K >= least_keys(kK) && K <= kK &&
         V % kGroupColumns == 0 && has_warpgroups() &&
         has_shared_memory(Memory<kMostGroups>::bytes());
}

void delta_scan_forward_wgmma(Context& context, const DeltaScanForward& a) {
  const int64_t V = a.in.v.dim(3);
  const Grid grid = warpgroup_grid(V);
  const ForwardArgs args{.in = delta_pointers<bfloat16>(a.in, V),
                         .o = pointer<bfloat16>(a.o),
                         .S_enter = pointer<bfloat16>(a.S_enter),
                         .S_final = pointer<float>(a.S_final),
                         .S_initial = pointer<float>(a.S_initial)};
  visit_groups(grid.groups, [&](auto groups) {
    launch(context, scan_forward_wgmma_kernel<groups>, shape_of<groups>(a.in.q, grid), args);
  });
}

void delta_reverse_scan_wgmma(Context& context, const DeltaReverseScan& a) {
  const int64_t V = a.dout.dim(3);
  const Grid grid = warpgroup_grid(V);
  const ReverseArgs args{.in = delta_pointers<bfloat16>(a.in, V),
                         .dout = pointer<bfloat16>(a.dout),
                         .dS_leave = pointer<bfloat16>(a.dS_leave),
                         .dS_initial = pointer<float>(a.dS_initial),
                         .dS_final = pointer<float>(a.dS_final)};
  visit_groups(grid.groups, [&](auto groups) {
    launch(context, reverse_scan_wgmma_kernel<groups>, shape_of<groups>(a.in.q, grid), args);
  });
}

}  // namespace kla::KLA_BACKEND
