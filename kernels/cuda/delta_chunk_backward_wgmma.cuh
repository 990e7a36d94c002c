// What the chunk backward on warpgroups keeps where, what brings it, and its products out of shared
// memory (delta_chunk_backward_wgmma.cu).
#pragma once

#include "kernels/cuda/delta_chunk_backward.cuh"
#include "kernels/cuda/delta_warpgroup.cuh"

namespace kla::KLA_BACKEND {

inline constexpr int kK = 96, kKeyBlocks = kK / kBlock;
inline constexpr int kVTile = 64;
inline constexpr int kGroups = 3, kThreads = 128 * kGroups;
inline constexpr int kGateWarp = 3;  // of group 0

using KeyTile = CoreTile<kK>;
using SquareTile = CoreTile<kTokens>;
static_assert(kVTile == kTokens);
inline constexpr int kKeyElements = KeyTile::elements(kTokens);
inline constexpr int kSquareElements = SquareTile::elements(kTokens);

// Sums of tokens.
struct ChunkSums {
  float qdq[kTokens], kM[kTokens], kdk[kTokens], vN[kTokens], kdA[kTokens], rectangle[kTokens];
  float states[4];  // by warp of group 2
};

struct WarpgroupMemory {
  struct Head {  // of a chunk; Tg becomes beta o dA, P becomes B
    KeyTile k, q;
    CoreTriangle inverse, P;
    Gates* gates;
  };
  struct VTile {
    KeyTile S, dS;       // [64 of V][K]
    SquareTile v, dout;  // [64][64 of V]
  };
  // A stage holds a tile; the one that holds none behind the walk: Z of group 1, and what it hands
  // to group 2 [kKeyBlocks * 8][128 threads].
  static constexpr int kZElements = kTokens * kZStride, kHandedElements = kKeyBlocks * 8 * 128;
  static constexpr int kStageElements = 2 * (kKeyElements + kSquareElements);
  static constexpr int kChainElements = 2 * kSquareElements;
  static_assert(kStageElements >= 2 * (kZElements + kHandedElements));  // of f32
  static_assert(kChainElements >= 2 * kZElements);

  bfloat16 *k, *q, *inverse, *P, *stages, *chains;
  Gates* gates;
  ChunkSums* sums;
  ChunkPlace* place;  // of this chunk: four registers less through the products

  __device__ explicit WarpgroupMemory(SharedMemory& shared) {
    k = shared.array<bfloat16>(2 * kKeyElements);
    q = shared.array<bfloat16>(2 * kKeyElements);
    inverse = shared.array<bfloat16>(2 * kSquareElements);
    P = shared.array<bfloat16>(kSquareElements);
    stages = shared.array<bfloat16>(2 * kStageElements);
    chains = shared.array<bfloat16>(kChainElements);  // X^T and N^T, then Z of group 2
    gates = shared.array<Gates>(2);
    sums = shared.array<ChunkSums>(1);
    place = shared.array<ChunkPlace>(1);
  }
  static size_t bytes() {
    SharedSize size;
    size.array<bfloat16>(2 * kKeyElements);
    size.array<bfloat16>(2 * kKeyElements);
    size.array<bfloat16>(2 * kSquareElements);
    size.array<bfloat16>(kSquareElements);
    size.array<bfloat16>(2 * kStageElements);
    size.array<bfloat16>(kChainElements);
    size.array<Gates>(2);
    size.array<ChunkSums>(1);
    size.array<ChunkPlace>(1);
    return size.bytes();
  }

  // Of the chunk that the block takes as its `turn`-th.
  __device__ Head head(int turn) const {
    const int s = turn % 2;
    return {{k + s * kKeyElements},
            {q + s * kKeyElements},
            {inverse + s * kSquareElements},
            {P},
            gates + s};
  }
  // Number `count` of the tiles that the block walks over.
  __device__ bfloat16* stage(int count) const { return stages + count % 2 * kStageElements; }
  __device__ VTile tile(int count) const {
    bfloat16* s = stage(count);
    return {
        {s}, {s + kKeyElements}, {s + 2 * kKeyElements}, {s + 2 * kKeyElements + kSquareElements}};
  }
  __device__ SquareTile X() const { return {chains}; }
  __device__ SquareTile N() const { return {chains + kSquareElements}; }
};

// Group 2 brings the tiles, while the others are at their chains: of a chunk keys, queries and T0,
// of a tile of V the states and values. Copies know their thread anew: products need the registers.
struct WarpgroupFeed {
  static constexpr int kThreads = 128;
  const BackwardArgs<bfloat16>& a;
  const WarpgroupMemory& memory;

  __device__ ChunkPlace place(int chunk) const {
    const int n = chunk / a.in.H;
    return chunk_place(a.in, n / a.in.NC, n % a.in.NC, chunk % a.in.H);
  }
  __device__ void head(int turn, const ChunkPlace& p) const {
    const int thread = thread_index() % kThreads;
    const WarpgroupMemory::Head to = memory.head(turn);
    const DeltaPointers<bfloat16>& in = a.in;
    const int64_t first = first_row(in, p) * in.K;
    const auto valid = [&](int row, int column) { return row < p.tokens && column < in.K; };
    copy_rows<kK, kThreads>(to.k, in.k + first, in.H * in.K, thread, valid);
    copy_rows<kK, kThreads>(to.q, in.q + first, in.H * in.K, thread, valid);
    copy_rows<kTokens, kThreads>(
        to.inverse.all(), in.T_zero + chunk_index(in, p) * kTokens * kTokens, kTokens, thread,
        [](int row, int column) { return column / kBlock <= row / kBlock; });
  }
  __device__ void tile(int count, const ChunkPlace& p, int n) const {
    const int thread = thread_index() % kThreads;
    const WarpgroupMemory::VTile to = memory.tile(count);
    const int K = a.in.K, V = a.in.V;
    const int64_t state = (chunk_index(a.in, p) * V + n * kVTile) * K;
    const int64_t value = first_row(a.in, p) * V + n * kVTile;
    const auto key = [&](int, int column) { return column < K; };
    const auto token = [&](int row, int) { return row < p.tokens; };
    copy_rows<kK, kThreads>(to.S, a.S_enter + state, K, thread, key);
    copy_rows<kK, kThreads>(to.dS, a.dS_leave + state, K, thread, key);
    copy_rows<kVTile, kThreads>(to.v, a.in.v + value, a.in.H * V, thread, token);
    copy_rows<kVTile, kThreads>(to.dout, a.dout + value, a.in.H * V, thread, token);
  }
  // The next tile but `n` of the chunk at p, or the head and first tile of the next chunk.
  __device__ void after(int turn, int n, const ChunkPlace& p, int next_chunk, int chunks) const {
    const int tiles = a.in.V / kVTile, count = turn * tiles + n + 1;
    if (n + 1 < tiles) {
      tile(count, p, n + 1);
    } else if (next_chunk < chunks) {
      const ChunkPlace next = place(next_chunk);
      head(turn + 1, next);
      tile(count, next, 0);
    }
    cp_async_commit();
  }
};

// What was copied or written is there for all, the tensor cores included.
__device__ __forceinline__ void meet() {
  share_with_tensor_cores();
  __syncthreads();
}

// c = a b^T of two tiles of 64 rows, summed over their columns.
template <int kColumns>
__device__ __forceinline__ void multiply_tiles(Accumulator (&c)[kTokenBlocks],
                                               const CoreTile<kColumns>& a,
                                               const CoreTile<kColumns>& b) {
  warpgroup_multiply<kTokenBlocks, false, false, false>(c, along_columns(a, 0),
                                                        along_columns(b, 0));
#pragma unroll
  for (int i = 1; i < kColumns / kBlock; ++i)
    warpgroup_multiply<kTokenBlocks, false, false, true>(c, along_columns(a, i),
                                                         along_columns(b, i));
}

// c += a b, or a^T b, over the 64 rows of b.
template <bool kTransposed, int kBlocks>
__device__ __forceinline__ void add_product(Accumulator (&c)[kBlocks], const SquareTile& a,
                                            const CoreTile<kBlocks * kBlock>& b) {
#pragma unroll
  for (int i = 0; i < kTokens / kBlock; ++i)
    warpgroup_multiply<kBlocks, kTransposed, true, true>(
        c, kTransposed ? along_rows(a, i) : along_columns(a, i), along_rows(b, i));
}

}  // namespace kla::KLA_BACKEND
