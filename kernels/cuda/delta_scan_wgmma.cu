// Both scans of the delta rule on warpgroups (wgmma.cuh): delta_scan.cu and delta_reverse_scan.cu
// state the mathematics, this is the form for what models are trained with. A warpgroup owns 64
// columns of V: S^T [64 x K] stays in its accumulators. Its products take their left operand from
// registers and all of a token tile from shared memory at once, where the kernels for mma.sync load
// every block of it again in every warp.
//
// Tiles of keys and queries, Tg and P lie in 8x8 cores: the same bytes serve as [tokens][K] in K S
// and as [K][tokens] in the state's update.
#include "kernels/cuda/delta_scan.cuh"
#include "kernels/cuda/delta_scan_wgmma.h"
#include "kernels/cuda/wgmma.cuh"

namespace kla::KLA_BACKEND {
namespace {

constexpr int kK = 96, kKeyBlocks = kK / kBlock;
constexpr int kGroupColumns = 64;  // of V, a warpgroup
constexpr int kMostGroups = 3, kMostThreads = 128 * kMostGroups;
constexpr int kStages = 3, kTriangles = 2;
constexpr int kValueStride = padded<bfloat16>(kGroupColumns * kMostGroups);

using KeyTile = CoreTile<kK>;
constexpr int kKeyElements = kTokens * kK, kTriangleElements = kTokens * kTokens;

// A lower triangle as one [64][64] tile; what lies above its blocks is neither written nor read.
struct CoreTriangle {
  bfloat16* data;
  __device__ CoreTile<kTokens> block(int i, int j) const {
    return {CoreTile<kTokens>{data}.at(i * kBlock, j * kBlock)};
  }
  __device__ CoreTile<kTokens> block(int index) const {
    const BlockIndex b(index);
    return block(b.i, b.j);
  }
};

// Shared memory; `values` is v, or dO in the reverse scan.
struct Memory {
  struct Stage {
    KeyTile q, k;
    Tile<bfloat16> values;
    CoreTriangle inverse, P;
    Gates* gates;
  };
  bfloat16 *q, *k, *values, *inverse, *P;
  Gates* gates;

  __device__ explicit Memory(SharedMemory& shared) {
    q = shared.array<bfloat16>(kStages * kKeyElements);
    k = shared.array<bfloat16>(kStages * kKeyElements);
    values = shared.array<bfloat16>(kStages * kTokens * kValueStride);
    inverse = shared.array<bfloat16>(kStages * kTriangleElements);
    P = shared.array<bfloat16>(kTriangles * kTriangleElements);
    gates = shared.array<Gates>(kStages);
  }
  static size_t bytes() {
    SharedSize size;
    size.array<bfloat16>(kStages * kKeyElements);
    size.array<bfloat16>(kStages * kKeyElements);
    size.array<bfloat16>(kStages * kTokens * kValueStride);
    size.array<bfloat16>(kStages * kTriangleElements);
    size.array<bfloat16>(kTriangles * kTriangleElements);
    size.array<Gates>(kStages);
    return size.bytes();
  }
  __device__ Stage stage(int step) const {
    const int s = step % kStages;
    return {{q + s * kKeyElements},
            {k + s * kKeyElements},
            {values + s * kTokens * kValueStride, kValueStride},
            {inverse + s * kTriangleElements},
            {P + step % kTriangles * kTriangleElements},
            gates + s};
  }
};

// kK columns of 64 rows, `stride` apart; zeros beyond `rows` and `columns`. Eight neighbouring
// threads fill one core.
__device__ __forceinline__ void copy_cores(const KeyTile& to, const bfloat16* from, int stride,
                                           int rows, int columns, int thread) {
  constexpr int kPieces = kK / 8;
  const int pass = static_cast<int>(blockDim.x) / (8 * kPieces);  // rows of cores at once
  const int row = thread / (8 * kPieces) * 8 + thread % 8, column = thread / 8 % kPieces * 8;
  if (row >= pass * 8) return;
  const int valid = column < columns ? rows : 0;
  bfloat16* shared = to.at(row, column);
  const bfloat16* global = from + int64_t{row} * stride + column;
  const int64_t step = int64_t{pass} * 8 * stride;
  for (int r = row; r < kTokens; r += pass * 8, shared += pass * KeyTile::kRowOfCores)
    cp_async_16(shared, global, r < valid), global += step;
}

// Brings what the steps of a scan need, from the first chunk to the last or the other way: ahead of
// a step's products lie the copies and gates of the step after next, behind the first of them the
// triangles of the next.
template <bool kReverse>
struct Feed {
  const DeltaPointers<bfloat16>& in;
  const bfloat16* source;  // of the values
  const Memory& memory;
  const ScanPlace& at;

  __device__ ChunkPlace place(int step) const {
    return chunk_place(in, at.b, kReverse ? in.NC - 1 - step : step, at.h);
  }
  __device__ bool makes_gates() const { return warp_index() == warp_count() - 1; }
  __device__ void copy(int step) const {
    if (step >= in.NC) return;
    const auto to = memory.stage(step);
    const ChunkPlace p = place(step);
    const int64_t row = first_row(in, p);
    const int thread = thread_index(), warp = thread / 32;  // anew: the products need the registers
    copy_cores(to.k, in.k + row * in.K, in.H * in.K, p.tokens, in.K, thread);
    copy_cores(to.q, in.q + row * in.K, in.H * in.K, p.tokens, in.K, thread);
    copy_tile<kBlock>(Tile<bfloat16>{to.values.at(0, warp * kBlock), to.values.stride},
                      source + row * in.V + at.column, in.H * in.V, p.tokens, kBlock, thread % 32,
                      32);
    copy_triangle(to.inverse, in.T_zero + chunk_index(in, p) * kTokens * kTokens, warp,
                  warp_count(), thread % 32);
    cp_async_commit();
  }
  __device__ GateInputs gate_inputs(int step) const {
    return makes_gates() && step < in.NC ? GateInputs(in, place(step)) : GateInputs();
  }
  __device__ void gates(int step, const GateInputs& inputs) const {
    if (makes_gates() && step < in.NC) make_gates(*memory.stage(step).gates, inputs);
  }
  __device__ void triangles(int step) const {
    const auto to = memory.stage(step);
    if (step < in.NC) gate_triangles<kK>(to.inverse, to.P, to.q, to.k, *to.gates, in.scale);
  }
  __device__ void meet() const {
    cp_async_wait<0>();
    share_with_tensor_cores();
    __syncthreads();
  }
  __device__ void begin() const {
    copy(0);
    gates(0, gate_inputs(0));
    copy(1);
    gates(1, gate_inputs(1));
    meet();
    triangles(0);
  }
  __device__ void enter(int step) const {
    const GateInputs inputs = gate_inputs(step + 2);
    meet();
    copy(step + 2);
    gates(step + 2, inputs);
  }
};

// ---- Products ----------------------------------------------------------------------------------

constexpr int kCoreBytes = 128, kKeyRow = 2 * KeyTile::kRowOfCores;
constexpr int kTriangleRow = 2 * CoreTile<kTokens>::kRowOfCores;

// tokens S, transposed: [64 of V][64 tokens].
__device__ __forceinline__ void read_state(const OperandA<bfloat16> (&s)[kKeyBlocks],
                                           const KeyTile& tokens, Accumulator (&R)[kTokenBlocks]) {
  const SharedOperand b = shared_operand(tokens.data, kCoreBytes, kKeyRow);
  warpgroup_multiply<0, kTokenBlocks, false, false>(R, s[0].x, b);
#pragma unroll
  for (int c = 1; c < kKeyBlocks; ++c)
    warpgroup_multiply<0, kTokenBlocks, false, true>(R, s[c].x, advanced(b, 2 * c * kCoreBytes));
}

// S^T += a tokens: the sum over the 64 tokens.
__device__ __forceinline__ void add_to_state(Accumulator (&S)[kKeyBlocks],
                                             const OperandA<bfloat16> (&a)[kTokenBlocks],
                                             const KeyTile& tokens) {
  const SharedOperand b = shared_operand(tokens.data, kKeyRow, kCoreBytes);
#pragma unroll
  for (int i = 0; i < kTokenBlocks; ++i)
    warpgroup_multiply<0, kKeyBlocks, true, true>(S, a[i].x, advanced(b, 2 * i * kKeyRow));
}

// c += (lower a^T)^T: block i of c sums a_j lower_ij^T over j <= i. Blocks above are left out.
template <bool kAdd>
__device__ __forceinline__ void multiply_lower(Accumulator (&c)[kTokenBlocks],
                                               const OperandA<bfloat16> (&a)[kTokenBlocks],
                                               const CoreTriangle& lower) {
  static_assert(kTokenBlocks == 4);
  const SharedOperand b = shared_operand(lower.data, kCoreBytes, kTriangleRow);
  constexpr int kDiagonal = 2 * (kTriangleRow + kCoreBytes);  // from block (j, j) to the next
  warpgroup_multiply<0, 4, false, kAdd>(c, a[0].x, b);
  warpgroup_multiply<1, 3, false, true>(c, a[1].x, advanced(b, kDiagonal));
  warpgroup_multiply<2, 2, false, true>(c, a[2].x, advanced(b, 2 * kDiagonal));
  warpgroup_multiply<3, 1, false, true>(c, a[3].x, advanced(b, 3 * kDiagonal));
}
// c += (lower^T a^T)^T: block j of c sums a_i lower_ij over i >= j.
template <bool kAdd>
__device__ __forceinline__ void multiply_upper(Accumulator (&c)[kTokenBlocks],
                                               const OperandA<bfloat16> (&a)[kTokenBlocks],
                                               const CoreTriangle& lower) {
  const SharedOperand b = shared_operand(lower.data, kTriangleRow, kCoreBytes);
  constexpr int kDown = 2 * kTriangleRow;
  warpgroup_multiply<0, 4, true, kAdd>(c, a[3].x, advanced(b, 3 * kDown));
  warpgroup_multiply<0, 3, true, true>(c, a[2].x, advanced(b, 2 * kDown));
  warpgroup_multiply<0, 2, true, true>(c, a[1].x, advanced(b, kDown));
  warpgroup_multiply<0, 1, true, true>(c, a[0].x, b);
}

__device__ __forceinline__ void scale_columns(Accumulator (&c)[kTokenBlocks], const float* factor,
                                              float scale) {
#pragma unroll
  for (int i = 0; i < kTokenBlocks; ++i)
#pragma unroll
    for (int e = 0; e < 8; ++e) c[i][e] *= scale * factor[i * kBlock + column_of(e)];
}

template <int kBlocks>
__device__ __forceinline__ void round_blocks(const Accumulator (&c)[kBlocks],
                                             OperandA<bfloat16> (&a)[kBlocks]) {
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) a[i] = operand<bfloat16>(c[i]);
}

// ---- Forward -----------------------------------------------------------------------------------

struct ForwardArgs {
  DeltaPointers<bfloat16> in;
  bfloat16 *o, *S_enter;  // S_enter, S_final, S_initial: null if not given
  float* S_final;
  const float* S_initial;
  int slices;
};

__global__ void __launch_bounds__(kMostThreads, 1) scan_forward_wgmma_kernel(ForwardArgs a) {
  SharedMemory shared;
  const Memory memory(shared);
  const DeltaPointers<bfloat16>& in = a.in;
  const ScanPlace at(in.H, a.slices);
  const Feed<false> feed{in, in.v, memory, at};
  Accumulator S[kKeyBlocks];
  load_state(S, a.S_initial ? a.S_initial + carried_state(in, at) : nullptr, in.K);
  feed.begin();

#pragma unroll 1
  for (int n = 0; n < in.NC; ++n) {
    feed.enter(n);
    const auto tiles = memory.stage(n);
    const Gates& gates = *tiles.gates;
    const ChunkPlace p = feed.place(n);
    const int column = warp_index() * kBlock;
    OperandA<bfloat16> s[kKeyBlocks], X[kTokenBlocks];
    Accumulator c[kTokenBlocks];  // K S, X, then O
    round_blocks(S, s);
    if (a.S_enter) store_state(s, a.S_enter + (chunk_index(in, p) * in.V + at.column) * in.K, in.K);
    decay_state(S, gates);
    warpgroup_begin();
    read_state(s, tiles.k, c);
    warpgroup_commit();
    warpgroup_wait<0>();

    forget(c, gates, gates.D);
#pragma unroll
    for (int j = 0; j < kTokenBlocks; ++j)
      X[j] = weighted_errors(c[j], tiles.values, column, j, gates);
    warpgroup_begin();
    multiply_lower<false>(c, X, tiles.inverse);
    warpgroup_commit();
    warpgroup_wait<0>();

    round_blocks(c, X);
    {
      OperandA<bfloat16> EX[kTokenBlocks];
      scale_columns(c, gates.E, 1);
      round_blocks(c, EX);
      forget(EX, gates, gates.E);
      warpgroup_begin();
      add_to_state(S, EX, tiles.k);
      warpgroup_commit();
      warpgroup_wait<0>();
    }
    warpgroup_begin();
    read_state(s, tiles.q, c);
    warpgroup_commit();
    warpgroup_wait<0>();

    forget(c, gates, gates.D);
    scale_columns(c, gates.D, in.scale);
    warpgroup_begin();
    multiply_lower<true>(c, X, tiles.P);
    warpgroup_commit();
    warpgroup_wait<0>();

    __syncwarp();  // the values of these columns have been read
#pragma unroll
    for (int i = 0; i < kTokenBlocks; ++i) store_transposed(tiles.values, i * kBlock, column, c[i]);
    __syncwarp();
    write_columns(a.o + first_row(in, p) * in.V + at.column, in.H * in.V, p.tokens,
                  Tile<bfloat16>{tiles.values.at(0, column), tiles.values.stride});
    feed.triangles(n + 1);
  }
  if (a.S_final) store_state(S, a.S_final + carried_state(in, at), in.K);
}

// ---- Reverse -----------------------------------------------------------------------------------

struct ReverseArgs {
  DeltaPointers<bfloat16> in;  // v is null
  const bfloat16* dout;
  bfloat16* dS_leave;
  float* dS_initial;  // null if not given, as dS_final
  const float* dS_final;
  int slices;
};

__global__ void __launch_bounds__(kMostThreads, 1) reverse_scan_wgmma_kernel(ReverseArgs a) {
  SharedMemory shared;
  const Memory memory(shared);
  const DeltaPointers<bfloat16>& in = a.in;
  const ScanPlace at(in.H, a.slices);
  const Feed<true> feed{in, a.dout, memory, at};
  Accumulator dS[kKeyBlocks];
  load_state(dS, a.dS_final ? a.dS_final + carried_state(in, at) : nullptr, in.K);
  feed.begin();

#pragma unroll 1
  for (int step = 0; step < in.NC; ++step) {
    feed.enter(step);
    const auto tiles = memory.stage(step);
    const Gates& gates = *tiles.gates;
    const int column = warp_index() * kBlock;
    OperandA<bfloat16> s[kKeyBlocks], d[kTokenBlocks], dX[kTokenBlocks];
    Accumulator c[kTokenBlocks];  // dX, then N
    round_blocks(dS, s);
    store_state(s, a.dS_leave + (chunk_index(in, feed.place(step)) * in.V + at.column) * in.K,
                in.K);
    decay_state(dS, gates);
    warpgroup_begin();
    read_state(s, tiles.k, c);
    warpgroup_commit();
#pragma unroll
    for (int j = 0; j < kTokenBlocks; ++j)
      d[j] = load_a_transposed(tiles.values, column, j * kBlock);
    warpgroup_wait<0>();

    forget(c, gates, gates.E);
    scale_columns(c, gates.E, 1);
    warpgroup_begin();
    multiply_upper<true>(c, d, tiles.P);
    warpgroup_commit();
    warpgroup_wait<0>();

    round_blocks(c, dX);
    warpgroup_begin();
    multiply_upper<false>(c, dX, tiles.inverse);
    warpgroup_commit();
    // What is read of the state, s D dO, while N is made.
#pragma unroll
    for (int j = 0; j < kTokenBlocks; ++j) {
      Accumulator read;
#pragma unroll
      for (int e = 0; e < 8; ++e)
        read[e] = in.scale * gates.D[j * kBlock + column_of(e)] * value(d[j], e);
      d[j] = operand<bfloat16>(read);
    }
    warpgroup_wait<0>();
    forget(d, gates, gates.D);

    // dR = -D beta N, in the place of dX.
#pragma unroll
    for (int j = 0; j < kTokenBlocks; ++j) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int t = j * kBlock + column_of(e);
        c[j][e] *= -gates.D[t] * gates.beta[t];
      }
      dX[j] = operand<bfloat16>(c[j]);
    }
    forget(dX, gates, gates.D);
    warpgroup_begin();
    add_to_state(dS, dX, tiles.k);
    add_to_state(dS, d, tiles.q);
    warpgroup_commit();
    warpgroup_wait<0>();
    feed.triangles(step + 1);
  }
  if (a.dS_initial) store_state(dS, a.dS_initial + carried_state(in, at), in.K);
}

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

Shape shape_of(int64_t heads, const Grid& grid) {
  return {.grid = dim3(static_cast<unsigned>(heads * grid.slices)),
          .threads = static_cast<unsigned>(128 * grid.groups),
          .shared_bytes = Memory::bytes()};
}

}  // namespace

bool scans_on_warpgroups(const Context& context, int64_t K, int64_t V) {
  return context.compute == DType::bf16 && K >= least_keys(kK) && K <= kK &&
         V % kGroupColumns == 0 && device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
         has_shared_memory(Memory::bytes());
}

void delta_scan_forward_wgmma(Context& context, const DeltaScanForward& a) {
  const int64_t V = a.in.v.dim(3);
  const Grid grid = warpgroup_grid(V);
  const ForwardArgs args{.in = delta_pointers<bfloat16>(a.in, V),
                         .o = pointer<bfloat16>(a.o),
                         .S_enter = pointer<bfloat16>(a.S_enter),
                         .S_final = pointer<float>(a.S_final),
                         .S_initial = pointer<float>(a.S_initial),
                         .slices = grid.slices};
  launch(context, scan_forward_wgmma_kernel, shape_of(a.in.q.dim(0) * a.in.q.dim(2), grid), args);
}

void delta_reverse_scan_wgmma(Context& context, const DeltaReverseScan& a) {
  const int64_t V = a.dout.dim(3);
  const Grid grid = warpgroup_grid(V);
  const ReverseArgs args{.in = delta_pointers<bfloat16>(a.in, V),
                         .dout = pointer<bfloat16>(a.dout),
                         .dS_leave = pointer<bfloat16>(a.dS_leave),
                         .dS_initial = pointer<float>(a.dS_initial),
                         .dS_final = pointer<float>(a.dS_final),
                         .slices = grid.slices};
  launch(context, reverse_scan_wgmma_kernel, shape_of(a.in.q.dim(0) * a.in.q.dim(2), grid), args);
}

}  // namespace kla::KLA_BACKEND
