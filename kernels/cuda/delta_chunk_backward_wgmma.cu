// The chunk backward (delta_chunk_backward.cu states the mathematics) on three warpgroups, for what
// models are trained with. V is walked in tiles of 64 columns; in each,
//
//   group 0:  R = K S, Y = V - D R, X = Tg (beta o Y)     then adds  dO S,  dP = dO X^T
//   group 1:  dX = P^T dO + E (K dS), N = Tg^T dX         then adds  N S,   N X^T
//   group 2:  <dS, S>                                     then adds  X dS,  dV, v . N
//
// The chains are transposed and leave X^T and N^T in shared memory; a sum over V is a product of a
// whole group, out of shared memory into the [64 x K] and [64 x 64] accumulators that a group keeps
// through the walk. Behind it, with B = s Gam o dP and dA = -Gam o N X^T,
//
//   group 0:  dQ = s D (dO S) + B K        group 1:  -D beta (N S) + beta o (dA K), handed to
//   group 2:  dK = that + E (X dS) + B^T Q + (beta o dA)^T K.
#include "kernels/cuda/delta_chunk_backward.cuh"
#include "kernels/cuda/delta_chunk_backward_wgmma.h"
#include "kernels/cuda/delta_warpgroup.cuh"

namespace kla::KLA_BACKEND {
namespace {

constexpr int kK = 96, kKeyBlocks = kK / kBlock;
constexpr int kVTile = 64;
constexpr int kGroups = 3, kThreads = 128 * kGroups, kLastWarp = kThreads / 32 - 1;

using KeyTile = CoreTile<kK>;
using SquareTile = CoreTile<kTokens>;
static_assert(kVTile == kTokens);
constexpr int kKeyElements = kTokens * kK, kSquareElements = kTokens * kTokens;

// Sums of tokens.
struct ChunkSums {
  float qdq[kTokens], kM[kTokens], kdk[kTokens], vN[kTokens], kdA[kTokens], rectangle[kTokens];
  float states[4];  // by warp of group 2
};

struct Memory {
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
  static constexpr int kStageElements = 2 * (kZElements + kHandedElements);  // of bf16
  static_assert(kStageElements >= 2 * (kKeyElements + kSquareElements));

  bfloat16 *k, *q, *inverse, *P, *stages, *chains;
  Gates* gates;
  ChunkSums* sums;

  __device__ explicit Memory(SharedMemory& shared) {
    k = shared.array<bfloat16>(2 * kKeyElements);
    q = shared.array<bfloat16>(2 * kKeyElements);
    inverse = shared.array<bfloat16>(2 * kSquareElements);
    P = shared.array<bfloat16>(kSquareElements);
    stages = shared.array<bfloat16>(2 * kStageElements);
    chains = shared.array<bfloat16>(2 * kZElements);  // X^T and N^T, then Z of group 0
    gates = shared.array<Gates>(2);
    sums = shared.array<ChunkSums>(1);
  }
  static size_t bytes() {
    SharedSize size;
    size.array<bfloat16>(2 * kKeyElements);
    size.array<bfloat16>(2 * kKeyElements);
    size.array<bfloat16>(2 * kSquareElements);
    size.array<bfloat16>(kSquareElements);
    size.array<bfloat16>(2 * kStageElements);
    size.array<bfloat16>(2 * kZElements);
    size.array<Gates>(2);
    size.array<ChunkSums>(1);
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

// Brings the tiles: of a chunk keys, queries and T0, of a tile of V the states and values.
struct Feed {
  const BackwardArgs<bfloat16>& a;
  const Memory& memory;

  __device__ ChunkPlace place(int chunk) const {
    const int n = chunk / a.in.H;
    return chunk_place(a.in, n / a.in.NC, n % a.in.NC, chunk % a.in.H);
  }
  __device__ void head(int turn, const ChunkPlace& p) const {
    const Memory::Head to = memory.head(turn);
    const DeltaPointers<bfloat16>& in = a.in;
    const int64_t row = first_row(in, p) * in.K;
    copy_cores<kThreads>(to.k, in.k + row, in.H * in.K, p.tokens, in.K);
    copy_cores<kThreads>(to.q, in.q + row, in.H * in.K, p.tokens, in.K);
    copy_triangle(to.inverse, in.T_zero + chunk_index(in, p) * kTokens * kTokens, warp_index(),
                  kThreads / 32, lane_index());
  }
  __device__ void tile(int count, const ChunkPlace& p, int n) const {
    const Memory::VTile to = memory.tile(count);
    const int K = a.in.K, V = a.in.V;
    const int64_t state = (chunk_index(a.in, p) * V + n * kVTile) * K;
    const int64_t row = first_row(a.in, p) * V + n * kVTile;
    copy_cores<kThreads>(to.S, a.S_enter + state, K, kVTile, K);
    copy_cores<kThreads>(to.dS, a.dS_leave + state, K, kVTile, K);
    copy_cores<kThreads>(to.v, a.in.v + row, a.in.H * V, p.tokens, kVTile);
    copy_cores<kThreads>(to.dout, a.dout + row, a.in.H * V, p.tokens, kVTile);
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

// ---- The walk over V: `row` is the warp's first of the group's 64 rows -------------------------

__device__ __forceinline__ void store_rows(const SquareTile& to, int row,
                                           const Accumulator (&c)[kTokenBlocks]) {
#pragma unroll
  for (int i = 0; i < kTokenBlocks; ++i) store(to, row, i * kBlock, c[i]);
}

__device__ __forceinline__ void write_chain(const Memory::Head& m, const Memory::VTile& tile,
                                            const SquareTile& X, int row) {
  Accumulator c[kTokenBlocks];  // R, then X
  OperandA<bfloat16> Yb[kTokenBlocks];
  warpgroup_begin();
  multiply_tiles(c, tile.S, m.k);
  warpgroup_commit();
  warpgroup_wait<0>();
  forget(c, *m.gates, m.gates->D);
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j) Yb[j] = weighted_errors(c[j], tile.v, row, j, *m.gates);
  warpgroup_begin();
  multiply_lower<false>(c, Yb, m.inverse);
  warpgroup_commit();
  warpgroup_wait<0>();
  store_rows(X, row, c);
}

__device__ __forceinline__ void gradient_chain(const Memory::Head& m, const Memory::VTile& tile,
                                               const SquareTile& N, int row) {
  Accumulator c[kTokenBlocks];  // dX, then N
  OperandA<bfloat16> a[kTokenBlocks];
  warpgroup_begin();
  multiply_tiles(c, tile.dS, m.k);
  warpgroup_commit();
#pragma unroll
  for (int i = 0; i < kTokenBlocks; ++i) a[i] = load_a_transposed(tile.dout, row, i * kBlock);
  warpgroup_wait<0>();
  forget(c, *m.gates, m.gates->E);
  scale_columns(c, m.gates->E, 1);
  warpgroup_begin();
  multiply_upper<true>(c, a, m.P);
  warpgroup_commit();
  warpgroup_wait<0>();
  round_blocks(c, a);
  warpgroup_begin();
  multiply_upper<false>(c, a, m.inverse);
  warpgroup_commit();
  warpgroup_wait<0>();
  store_rows(N, row, c);
}

// This thread's part of <dS, S>.
__device__ __forceinline__ float dot_states(const Memory::VTile& tile) {
  constexpr int kPieces = kKeyElements / 8;
  float sum = 0;
#pragma unroll 2
  for (int piece = static_cast<int>(threadIdx.x) % 128; piece < kPieces; piece += 128) {
    const uint4 S = reinterpret_cast<const uint4*>(tile.S.data)[piece];
    const uint4 dS = reinterpret_cast<const uint4*>(tile.dS.data)[piece];
    sum +=
        dot(OperandB<bfloat16>{{S.x, S.y, S.z, S.w}}, OperandB<bfloat16>{{dS.x, dS.y, dS.z, dS.w}});
  }
  return sum;
}

// ---- Behind the walk ---------------------------------------------------------------------------

// sums[row] = the dots of 16 rows with the same rows of a tile.
__device__ __forceinline__ void set_row_dots(float* sums, const Accumulator (&c)[kKeyBlocks],
                                             const KeyTile& tokens, int row) {
  float upper = 0, lower = 0;
#pragma unroll
  for (int n = 0; n < kKeyBlocks; ++n) {
    const OperandA<bfloat16> t = load_a(tokens, row, n * kBlock);
#pragma unroll
    for (int e = 0; e < 8; ++e) (e / 2 % 2 ? lower : upper) += c[n][e] * value(t, e);
  }
  set_row_sums(sums, row / kBlock, upper, lower);
}

__device__ __forceinline__ void write_rows(bfloat16* to, const DeltaPointers<bfloat16>& in,
                                           const ChunkPlace& p, const Accumulator (&c)[kKeyBlocks],
                                           int row) {
  bfloat16* rows = to + (first_row(in, p) + int64_t{row} * in.H) * in.K;
#pragma unroll
  for (int n = 0; n < kKeyBlocks; ++n)
    store_global(rows + n * kBlock, in.H * in.K, n * kBlock < in.K ? p.tokens - row : 0, c[n]);
}

// dP -> B = s Gam o dP, in registers and over P, and Z = dP o P.
__device__ __forceinline__ void make_B(Accumulator (&dP)[kTokenBlocks],
                                       OperandA<bfloat16> (&B)[kTokenBlocks], float* Z,
                                       const Memory::Head& m, int row, float scale) {
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j) {
    const SquareTile tile = {m.P.all().at(row, j * kBlock)};
    const OperandA<bfloat16> P = load_a(tile, 0, 0);
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int t = row + row_of(e), u = j * kBlock + column_of(e);
      Z[t * kZStride + u] = u < t ? dP[j][e] * value(P, e) : 0;
      dP[j][e] = m.gates->reaches(t, u) ? scale * m.gates->between(t, u) * dP[j][e] : 0;
    }
    __syncwarp();
    store(tile, 0, 0, dP[j]);
    B[j] = operand<bfloat16>(dP[j]);
  }
}

// N X^T -> beta o dA, dA = -Gam o N X^T, in registers and over Tg, Z = beta o dA o K K^T, and the
// row sums of dA o K K^T.
__device__ __forceinline__ void make_dA(Accumulator (&NX)[kTokenBlocks],
                                        const Accumulator (&KK)[kTokenBlocks],
                                        OperandA<bfloat16> (&dA)[kTokenBlocks], float* Z,
                                        float* kdA, const Memory::Head& m, int row) {
  const Gates& gates = *m.gates;
  float upper = 0, lower = 0;
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int t = row + row_of(e), u = j * kBlock + column_of(e);
      const float x = gates.reaches(t, u) && u < t ? -gates.between(t, u) * NX[j][e] : 0;
      const float part = x * KK[j][e];
      (e / 2 % 2 ? lower : upper) += part;
      Z[t * kZStride + u] = gates.beta[t] * part;
      NX[j][e] = gates.beta[t] * x;
    }
    store(m.inverse.all(), row, j * kBlock, NX[j]);
    dA[j] = operand<bfloat16>(NX[j]);
  }
  set_row_sums(kdA, row / kBlock, upper, lower);
}

// rectangle[t] = sum of Z_ij over i >= t, j < t, Z the sum of two: prefix sums along the rows, then
// sums down the columns; four lanes a row or column, 16 elements each, 256 threads.
__device__ inline void sum_rows(float* Z, const float* other) {
  const int line = static_cast<int>(threadIdx.x) / 4, part = lane_index() % 4;
  const int begin = line * kZStride + part * kBlock;
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kBlock; ++j) Z[begin + j] = sum += Z[begin + j] + other[begin + j];
  float before = 0;
#pragma unroll
  for (int left = 0; left < 3; ++left) {
    const float theirs = __shfl_sync(kAllLanes, sum, lane_index() / 4 * 4 + left);
    if (left < part) before += theirs;
  }
#pragma unroll
  for (int j = 0; j < kBlock; ++j) Z[begin + j] += before;
}
__device__ inline void sum_columns(const float* Z, float* rectangle) {
  const int line = static_cast<int>(threadIdx.x) / 4, part = lane_index() % 4;
  float sum = 0;
#pragma unroll
  for (int i = part * kBlock; i < (part + 1) * kBlock; ++i)
    sum += line > 0 && i >= line ? Z[i * kZStride + line - 1] : 0;
  sum = sum_of_quad(sum);
  if (part == 0) rectangle[line] = sum;
}

// One group's part of the gradients of a chunk; every group comes to as many meetings. A group's
// sums over V: `wide` [64 x K], `square` [64 x 64].
struct Chunk {
  const BackwardArgs<bfloat16>& a;
  const Memory& memory;
  const ChunkPlace& p;
  const Memory::Head m;
  int turn, row;  // the warp's first row of its group's 64

  __device__ __forceinline__ int tiles() const { return a.in.V / kVTile; }
  __device__ __forceinline__ int count(int n) const { return turn * tiles() + n; }
  // Memory of the stage that no tile is in behind the walk.
  __device__ __forceinline__ float* spare() const {
    return reinterpret_cast<float*>(memory.stage(count(tiles() - 1)));
  }
  __device__ __forceinline__ float* Z0() const { return reinterpret_cast<float*>(memory.chains); }

  // Tile by tile: enter(n) brings it and asks for the next, then the chains, then the sums.
  template <class Enter, class Chain, class Sum>
  __device__ __forceinline__ void walk(Enter&& enter, Chain&& chain, Sum&& sum) const {
#pragma unroll 1
    for (int n = 0; n < tiles(); ++n) {
      enter(n);
      const Memory::VTile tile = memory.tile(count(n));
      chain(tile);
      meet();
      sum(tile, n);
    }
    meet();  // X^T, N^T and the last tile have been read
  }

  template <class Enter>
  __device__ __forceinline__ void group_0(Enter&& enter) const {
    Accumulator wide[kKeyBlocks], square[kTokenBlocks];
    walk(
        enter, [&](const auto& tile) { write_chain(m, tile, memory.X(), row); },
        [&](const auto& tile, int) {
          warpgroup_begin();
          add_product<false>(wide, tile.dout, tile.S);
          add_product<false>(square, tile.dout, memory.X());
          warpgroup_commit();
          warpgroup_wait<0>();
        });
    OperandA<bfloat16> B[kTokenBlocks];
    make_B(square, B, Z0(), m, row, a.in.scale);
    set_row_dots(memory.sums->qdq, wide, m.q, row);
    scale_rows(wide, *m.gates, m.gates->D, row, [&](int t) { return a.in.scale * m.gates->D[t]; });
    warpgroup_begin();
    add_rows(wide, B, m.k);
    warpgroup_commit();
    warpgroup_wait<0>();
    write_rows(a.dq, a.in, p, wide, row);
    meet();
    sum_rows(Z0(), spare());
    meet();
    sum_columns(Z0(), memory.sums->rectangle);
  }

  template <class Enter>
  __device__ __forceinline__ void group_1(Enter&& enter) const {
    Accumulator wide[kKeyBlocks], square[kTokenBlocks];
    walk(
        enter, [&](const auto& tile) { gradient_chain(m, tile, memory.N(), row); },
        [&](const auto& tile, int) {
          warpgroup_begin();
          add_product<true>(wide, memory.N(), tile.S);
          add_product<true>(square, memory.N(), memory.X());
          warpgroup_commit();
          warpgroup_wait<0>();
        });
    Accumulator KK[kTokenBlocks];
    OperandA<bfloat16> dA[kTokenBlocks];
    warpgroup_begin();
    multiply_tiles(KK, m.k, m.k);
    warpgroup_commit();
    warpgroup_wait<0>();
    make_dA(square, KK, dA, spare(), memory.sums->kdA, m, row);
    set_row_dots(memory.sums->kM, wide, m.k, row);
    scale_rows(wide, *m.gates, m.gates->D, row,
               [&](int t) { return -m.gates->D[t] * m.gates->beta[t]; });
    warpgroup_begin();
    add_rows(wide, dA, m.k);
    warpgroup_commit();
    warpgroup_wait<0>();
    float* handed = spare() + Memory::kZElements + static_cast<int>(threadIdx.x) % 128;
#pragma unroll
    for (int n = 0; n < kKeyBlocks; ++n)
#pragma unroll
      for (int e = 0; e < 8; ++e) handed[(8 * n + e) * 128] = wide[n][e];
    meet();
    sum_rows(Z0(), spare());
    meet();
    sum_columns(Z0(), memory.sums->rectangle);
  }

  template <class Enter>
  __device__ __forceinline__ void group_2(Enter&& enter) const {
    Accumulator wide[kKeyBlocks];
    float vN[2] = {}, states = 0;
    const int stride = a.in.H * a.in.V;
    bfloat16* dv = a.dv + (first_row(a.in, p) + int64_t{row} * a.in.H) * a.in.V;
    walk(
        enter, [&](const auto& tile) { states += dot_states(tile); },
        [&](const auto& tile, int n) {
          warpgroup_begin();
          add_product<true>(wide, memory.X(), tile.dS);
          warpgroup_commit();
          warpgroup_wait<0>();
#pragma unroll
          for (int v = 0; v < kVTile; v += kBlock)
            value_gradient(vN, load_a_transposed(memory.N(), row, v), load_a(tile.v, row, v),
                           m.gates->beta + row, dv + n * kVTile + v, stride, p.tokens - row);
        });
    set_row_sums(memory.sums->vN, row / kBlock, vN[0], vN[1]);
    for (int lanes = 1; lanes < 32; lanes *= 2) states += __shfl_xor_sync(kAllLanes, states, lanes);
    if (lane_index() == 0) memory.sums->states[row / kBlock] = states;
    set_row_dots(memory.sums->kdk, wide, m.k, row);
    scale_rows(wide, *m.gates, m.gates->E, row, [&](int t) { return m.gates->E[t]; });
    meet();
    const float* handed = spare() + Memory::kZElements + static_cast<int>(threadIdx.x) % 128;
#pragma unroll
    for (int n = 0; n < kKeyBlocks; ++n)
#pragma unroll
      for (int e = 0; e < 8; ++e) wide[n][e] += handed[(8 * n + e) * 128];
    warpgroup_begin();
    add_product<true>(wide, m.P.all(), m.q);
    add_product<true>(wide, m.inverse.all(), m.k);
    warpgroup_commit();
    warpgroup_wait<0>();
    write_rows(a.dk, a.in, p, wide, row);
    meet();
  }
};

// A block takes every gridDim.x-th chunk. Tiles are asked for one tile ahead, keys, queries, T0 and
// gates of the next chunk with its first tile.
__global__ void __launch_bounds__(kThreads, 1)
    backward_wgmma_kernel(BackwardArgs<bfloat16> a, int chunks) {
  SharedMemory shared;
  const Memory memory(shared);
  const Feed feed{a, memory};
  const int warp = uniform_warp_index(), blocks = static_cast<int>(gridDim.x);
  const int tiles = a.in.V / kVTile;
  const auto gates = [&](int turn, const ChunkPlace& p) {
    if (warp == kLastWarp) make_gates(*memory.head(turn).gates, GateInputs(a.in, p));
  };
  int chunk = static_cast<int>(blockIdx.x);
  feed.head(0, feed.place(chunk));
  feed.tile(0, feed.place(chunk), 0);
  cp_async_commit();
  gates(0, feed.place(chunk));

#pragma unroll 1
  for (int turn = 0; chunk < chunks; ++turn, chunk += blocks) {
    const ChunkPlace p = feed.place(chunk);
    const Chunk c{a, memory, p, memory.head(turn), turn, warp % 4 * kBlock};
    cp_async_wait<0>();
    __syncthreads();
    gate_triangles<kK>(c.m.inverse, c.m.P, c.m.q, c.m.k, *c.m.gates, a.in.scale);
    const auto enter = [&](int n) {
      if (n > 0) cp_async_wait<0>();
      meet();  // the tile is there, the one before has been read
      if (n + 1 < tiles) {
        feed.tile(c.count(n + 1), p, n + 1);
      } else if (chunk + blocks < chunks) {
        const ChunkPlace next = feed.place(chunk + blocks);
        feed.head(turn + 1, next);
        feed.tile(c.count(tiles), next, 0);
      }
      cp_async_commit();
    };
    switch (warp / 4) {
      case 0:
        c.group_0(enter);
        break;
      case 1:
        c.group_1(enter);
        break;
      default:
        c.group_2(enter);
    }
    if (chunk + blocks < chunks) gates(turn + 1, feed.place(chunk + blocks));
    __syncthreads();  // the sums are there
    if (warp == 0) {
      const int t = 2 * lane_index();
      const auto two = [&](const float* sums) {
        return *reinterpret_cast<const float2*>(sums + t);
      };
      const ChunkSums& s = *memory.sums;
      write_scalars(a, p, *c.m.gates,
                    {.qdq = two(s.qdq),
                     .kM = two(s.kM),
                     .kdk = two(s.kdk),
                     .vN = two(s.vN),
                     .kdA = two(s.kdA),
                     .rectangle = two(s.rectangle),
                     .states = lane_index() < 4 ? s.states[lane_index()] : 0});
    }
  }
}

}  // namespace

bool chunk_backward_on_warpgroups(const Context& context, int64_t K, int64_t V) {
  return context.compute == DType::bf16 && K >= least_keys(kK) && K <= kK && V % kVTile == 0 &&
         device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
         has_shared_memory(Memory::bytes());
}

void delta_chunk_backward_wgmma(Context& context, const DeltaChunkBackward& a) {
  const BackwardArgs<bfloat16> args = backward_args<bfloat16>(a);
  const int chunks = static_cast<int>(a.in.q.dim(0) * a.in.T_zero.dim(1) * a.in.q.dim(2));
  launch(context, backward_wgmma_kernel,
         Shape{.grid = dim3(static_cast<unsigned>(std::min(chunks, multiprocessors()))),
               .threads = kThreads,
               .shared_bytes = Memory::bytes()},
         args, chunks);
}

}  // namespace kla::KLA_BACKEND
