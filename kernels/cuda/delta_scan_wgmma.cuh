// What both scans on warpgroups share (delta_scan_wgmma.cu): tiles in shared memory as wgmma reads
// them, what is brought and made for the steps ahead, and the products.
//
// Between warpgroup_begin() and warpgroup_wait() stands what the products do not need: copies and
// stores, the gates of the step after next, the triangles of the next. All that a thread's place
// gives, addresses above all, is computed anew where it is used: the products need the registers.
#pragma once

#include "kernels/cuda/delta_scan.cuh"
#include "kernels/cuda/delta_warpgroup.cuh"

namespace kla::KLA_BACKEND {

inline constexpr int kK = 96, kKeyBlocks = kK / kBlock;
inline constexpr int kGroupColumns = 64, kGroupThreads = 128;  // of V, of a warpgroup
inline constexpr int kMostGroups = 3;
inline constexpr int kStages = 3, kTriangles = 2;

using KeyTile = CoreTile<kK>;
using SquareTile = CoreTile<kTokens>;
inline constexpr int kKeyElements = KeyTile::elements(kTokens);
inline constexpr int kSquareElements = SquareTile::elements(kTokens);

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
struct LastFirstTriangle : LastFirst<SquareTile> {
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
    LastFirstTriangle inverse, P;
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

// Brings what the steps of a scan need, from the first chunk to the last or the other way: during a
// step the copies and gates of the step after next and the triangles of the next. Past the last
// chunk come zeros.
template <bool kReverse, int kGroups>
struct Feed {
  static constexpr int kThreads = kGroupThreads * kGroups, kWarps = kThreads / 32;
  const DeltaPointers<bfloat16>& in;
  const bfloat16* source;  // of the values
  const Memory<kGroups>& memory;

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
      gate_block(to.inverse, to.P, block, product_abt<kK>(to.q, block.i, to.k, block.j), *to.gates,
                 in.scale);
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

inline constexpr int kKeyRow = 2 * KeyTile::kRowOfCores;
inline constexpr int kTriangleRow = 2 * SquareTile::kRowOfCores;

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
                                               const LastFirstTriangle& lower) {
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
                                               const LastFirstTriangle& lower) {
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

}  // namespace kla::KLA_BACKEND
