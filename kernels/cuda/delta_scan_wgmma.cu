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
constexpr int kGroupColumns = 64, kGroupThreads = 128;  // of V, of a warpgroup
constexpr int kMostGroups = 3;
constexpr int kStages = 3, kTriangles = 2;

using KeyTile = CoreTile<kK>;
using SquareTile = CoreTile<kTokens>;
constexpr int kKeyElements = KeyTile::elements(kTokens);
constexpr int kSquareElements = SquareTile::elements(kTokens);

// A token tile whose blocks of 16 rows lie last block first. So do q and the rows of the triangles:
// a product with a lower triangle then fills its accumulators from the first on, and only such does
// ptxas let run behind a warp's back.
template <class AnyTile>
struct LastFirst {
  AnyTile tile;
  __device__ bfloat16* at(int row, int column) const {
    return tile.at(row ^ (kTokens - kBlock), column);
  }
};

// A lower triangle as one [64][64] tile; what lies above its blocks is not read.
struct CoreTriangle : LastFirst<SquareTile> {
  __device__ SquareTile block(int i, int j) const { return {at(i * kBlock, j * kBlock)}; }
};

// Shared memory; `values` is v, or dO in the reverse scan.
template <int kGroups>
struct Memory {
  static constexpr int kValueStride = padded<bfloat16>(kGroupColumns * kGroups);
  struct Stage {
    LastFirst<KeyTile> q;
    KeyTile k;
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
    inverse = shared.array<bfloat16>(kStages * kSquareElements);
    P = shared.array<bfloat16>(kTriangles * kSquareElements);
    gates = shared.array<Gates>(kStages);
  }
  static size_t bytes() {
    SharedSize size;
    size.array<bfloat16>(kStages * kKeyElements);
    size.array<bfloat16>(kStages * kKeyElements);
    size.array<bfloat16>(kStages * kTokens * kValueStride);
    size.array<bfloat16>(kStages * kSquareElements);
    size.array<bfloat16>(kTriangles * kSquareElements);
    size.array<Gates>(kStages);
    return size.bytes();
  }
  __device__ Stage stage(int step) const {
    const int s = step % kStages;
    return {{{q + s * kKeyElements}},
            {k + s * kKeyElements},
            {values + s * kTokens * kValueStride, kValueStride},
            {{{inverse + s * kSquareElements}}},
            {{{P + step % kTriangles * kSquareElements}}},
            gates + s};
  }
};

// kColumns columns of 64 rows, `stride` apart, by kThreads threads: neighbours take neighbouring
// pieces of a row. Zeros where not valid(row, column).
template <int kColumns, int kThreads, class AnyTile, class Valid>
__device__ __forceinline__ void copy_rows(const AnyTile& to, const bfloat16* from, int stride,
                                          int thread, Valid&& valid) {
  constexpr int kPieces = kColumns / 8, kMostRows = kThreads / kPieces;
  constexpr int kPass = kMostRows >= 32 ? 32 : kMostRows >= 16 ? 16 : 8;  // rows at once
  const int row = thread / kPieces, column = thread % kPieces * 8;
  const bool wanted = kPass * kPieces == kThreads || row < kPass;
  bfloat16* shared = to.at(row, column);
  const bfloat16* global = from + int64_t{row} * stride + column;
#pragma unroll
  for (int r = 0; r < kTokens; r += kPass)
    cp_async_16_if(wanted, shared + (to.at(r, 0) - to.at(0, 0)), global + int64_t{r} * stride,
                   valid(row + r, column));
}

// Brings what the steps of a scan need, from the first chunk to the last or the other way: during a
// step the copies and gates of the step after next and the triangles of the next. All of it but
// begin() and meet() is meant to stand where products run, so it is one straight line of code
// (wgmma.cuh): past the last chunk come zeros, and warps without a share store nothing.
template <bool kReverse, int kGroups>
struct Feed {
  static constexpr int kThreads = kGroupThreads * kGroups, kWarps = kThreads / 32;
  const DeltaPointers<bfloat16>& in;
  const bfloat16* source;  // of the values
  const Memory<kGroups>& memory;

  // Computed anew where used: the products need the registers.
  __device__ ScanPlace at() const {
    return {static_cast<int>(blockIdx.z), static_cast<int>(blockIdx.y),
            (static_cast<int>(blockIdx.x) * kWarps + thread_index() / 32) * kBlock};
  }
  __device__ ChunkPlace place(int step) const {
    ChunkPlace p = chunk_place(in, static_cast<int>(blockIdx.z), kReverse ? in.NC - 1 - step : step,
                               static_cast<int>(blockIdx.y));
    if (step >= in.NC) p.tokens = 0;
    return p;
  }
  __device__ void copy_keys(int step) const {
    const auto to = memory.stage(step);
    const ChunkPlace p = place(step);
    const int64_t first = first_row(in, p) * in.K;
    const int thread = thread_index();
    const auto valid = [&](int row, int column) { return row < p.tokens && column < in.K; };
    copy_rows<kK, kThreads>(to.k, in.k + first, in.H * in.K, thread, valid);
    copy_rows<kK, kThreads>(to.q, in.q + first, in.H * in.K, thread, valid);
  }
  // Each warpgroup its own columns.
  __device__ void copy_values(int step) const {
    const auto to = memory.stage(step);
    const ChunkPlace p = place(step);
    const int thread = thread_index(), group = thread / kGroupThreads * kGroupColumns;
    copy_rows<kGroupColumns, kGroupThreads>(
        Tile<bfloat16>{to.values.at(0, group), to.values.stride},
        source + first_row(in, p) * in.V + at().column / kGroupColumns * kGroupColumns, in.H * in.V,
        thread % kGroupThreads, [&](int row, int) { return row < p.tokens; });
    copy_rows<kTokens, kThreads>(
        to.inverse, in.T_zero + chunk_index(in, p) * kTokens * kTokens, kTokens, thread,
        [&](int row, int column) { return p.tokens > 0 && column / kBlock <= row / kBlock; });
    cp_async_commit();
  }
  __device__ bool makes_gates() const { return thread_index() / 32 == kWarps - 1; }
  __device__ GateInputs gate_inputs(int step) const {
    return makes_gates() ? GateInputs(in, place(step)) : GateInputs();
  }
  __device__ void gates(int step, const GateInputs& inputs) const {
    if (makes_gates()) make_gates(*memory.stage(step).gates, inputs);
  }
  __device__ void triangles(int step) const {
    const auto to = memory.stage(step);
    const int warp = thread_index() / 32;
#pragma unroll
    for (int first = 0; first < kLowerBlocks; first += kWarps) {
      if (first + warp >= kLowerBlocks) break;
      const BlockIndex block(first + warp);
      const GatedBlock gated = gated_block<kK>(block, to.inverse, to.q, to.k, *to.gates, in.scale);
      __syncwarp();
      store(to.P.block(block.i, block.j), 0, 0, gated.P);
      store(to.inverse.block(block.i, block.j), 0, 0, gated.inverse);
    }
  }
  __device__ void meet() const {
    cp_async_wait<0>();
    share_with_tensor_cores();
    __syncthreads();
  }
  __device__ void begin() const {
    for (int step = 0; step < 2; ++step) {
      copy_keys(step);
      copy_values(step);
      gates(step, gate_inputs(step));
    }
    meet();
    triangles(0);
  }
};

// ---- Products ----------------------------------------------------------------------------------

constexpr int kCoreBytes = 2 * KeyTile::kCore, kKeyRow = 2 * KeyTile::kRowOfCores;
constexpr int kTriangleRow = 2 * SquareTile::kRowOfCores;

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

// c += (lower a^T)^T: block i sums a_j lower_ij^T over j <= i. Last block first.
template <bool kAdd>
__device__ __forceinline__ void multiply_lower(Accumulator (&c)[kTokenBlocks],
                                               const OperandA<bfloat16> (&a)[kTokenBlocks],
                                               const CoreTriangle& lower) {
  static_assert(kTokenBlocks == 4);
  const SharedOperand b = shared_operand(lower.tile.data, kCoreBytes, kTriangleRow);
  constexpr int kNext = 2 * kCoreBytes;
  warpgroup_multiply<0, 4, false, kAdd>(c, a[0].x, b);
  warpgroup_multiply<0, 3, false, true>(c, a[1].x, advanced(b, kNext));
  warpgroup_multiply<0, 2, false, true>(c, a[2].x, advanced(b, 2 * kNext));
  warpgroup_multiply<0, 1, false, true>(c, a[3].x, advanced(b, 3 * kNext));
}
// c += (lower^T a^T)^T: block j sums a_i lower_ij over i >= j. First block first.
template <bool kAdd>
__device__ __forceinline__ void multiply_upper(Accumulator (&c)[kTokenBlocks],
                                               const OperandA<bfloat16> (&a)[kTokenBlocks],
                                               const CoreTriangle& lower) {
  const SharedOperand b = shared_operand(lower.tile.data, kTriangleRow, kCoreBytes);
  constexpr int kNext = 2 * kTriangleRow;
  warpgroup_multiply<0, 4, true, kAdd>(c, a[3].x, b);
  warpgroup_multiply<0, 3, true, true>(c, a[2].x, advanced(b, kNext));
  warpgroup_multiply<0, 2, true, true>(c, a[1].x, advanced(b, 2 * kNext));
  warpgroup_multiply<0, 1, true, true>(c, a[0].x, advanced(b, 3 * kNext));
}

// ---- Between the products ----------------------------------------------------------------------
//
// kResets: the chunk has document starts. What they cut off is zero by selection, without it 0
// times inf would pass as NaN. Chunks without them, nearly all, are spared the selections.

// x where `factor` lets something pass.
template <bool kResets>
__device__ __forceinline__ float passed(float factor, float x) {
  return kResets && factor == 0 ? 0 : x;
}
template <bool kResets>
__device__ __forceinline__ void decay(Accumulator (&S)[kKeyBlocks], const Gates& gates) {
  const float gamma = gates.gamma;
#pragma unroll
  for (int c = 0; c < kKeyBlocks; ++c)
#pragma unroll
    for (int e = 0; e < 8; ++e) S[c][e] = kResets ? 0 : S[c][e] * gamma;
}
// Where a token block lies in accumulators whose last block comes first.
template <bool kLastFirst>
constexpr int place_of(int block) {
  return kLastFirst ? kTokenBlocks - 1 - block : block;
}
template <bool kLastFirst>
__device__ __forceinline__ void round_tokens(const Accumulator (&c)[kTokenBlocks],
                                             OperandA<bfloat16> (&a)[kTokenBlocks]) {
#pragma unroll
  for (int i = 0; i < kTokenBlocks; ++i) a[i] = operand<bfloat16>(c[place_of<kLastFirst>(i)]);
}
template <bool kLastFirst, bool kResets>
__device__ __forceinline__ void scale_tokens(Accumulator (&c)[kTokenBlocks], const float* factor,
                                             float scale) {
#pragma unroll
  for (int i = 0; i < kTokenBlocks; ++i)
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float f = factor[i * kBlock + column_of(e)];
      float& x = c[place_of<kLastFirst>(i)][e];
      x = scale * f * passed<kResets>(f, x);
    }
}

// The state on a chunk's edge, [V][K]: nothing beyond `columns`.
__device__ __forceinline__ void keep_state(const OperandA<bfloat16> (&s)[kKeyBlocks], bfloat16* to,
                                           int K, int columns) {
  bfloat16* place = to + int64_t{lane_index() / 4} * K + sector_column();
#pragma unroll
  for (int half = 0; half < 2; ++half, place += 8 * K)
#pragma unroll
    for (int c = 0; c < kKeyBlocks; ++c) {
      const uint2 four = sector_part(s[c], half);
      if (c * kBlock < columns) *reinterpret_cast<uint2*>(place + c * kBlock) = four;
    }
}

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
  keep_state(s, a.S_enter + (chunk_index(in, p) * in.V + feed.at().column) * in.K, in.K,
             a.S_enter ? in.K : 0);
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
#ifdef KLA_HAS_WGMMA
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
#endif
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
  keep_state(s, a.dS_leave + (chunk_index(in, feed.place(step)) * in.V + feed.at().column) * in.K,
             in.K, in.K);
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j) d[j] = load_a_transposed(tiles.values, column, j * kBlock);
  decay<kResets>(dS, gates);
  feed.gates(step + 2, coming);
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
#ifdef KLA_HAS_WGMMA
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
#endif
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
         V % kGroupColumns == 0 && device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
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
