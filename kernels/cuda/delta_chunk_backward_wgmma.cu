// The chunk backward (delta_chunk_backward.cu states the mathematics) on three warpgroups, for what
// models are trained with. V is walked in tiles of 64 columns; in each,
//
//   group 0:  R = K S, Y = V - D R, X = Tg (beta o Y)     then adds  dO S,  and dV, v . N
//   group 1:  dX = P^T dO + E (K dS), N = Tg^T dX         then adds  N S,   N X^T
//   group 2:  the next tile, <dS, S>                      then adds  X dS,  dP = dO X^T
//
// The chains are transposed and leave X^T and N^T in shared memory; a sum over V is a product of a
// whole group, out of shared memory into the [64 x K] and [64 x 64] accumulators that a group keeps
// through the walk. Behind it, with B = s Gam o dP (group 2) and dA = -Gam o N X^T (group 1),
//
//   group 0:  dQ = s D (dO S) + B K        group 1:  -D beta (N S), handed to
//   group 2:  dK = that + E (X dS) + B^T Q + (beta o dA)^T K + (beta o dA) K.
#include "kernels/cuda/delta_chunk_backward_wgmma.cuh"
#include "kernels/cuda/delta_chunk_backward_wgmma.h"

namespace kla::KLA_BACKEND {
namespace {

// ---- The walk over V: `row` is the warp's first of the group's 64 rows -------------------------

__device__ __forceinline__ void store_rows(const SquareTile& to, int row,
                                           const Accumulator (&c)[kTokenBlocks]) {
#pragma unroll
  for (int i = 0; i < kTokenBlocks; ++i) store(to, row, i * kBlock, c[i]);
}

__device__ __forceinline__ void write_chain(const WarpgroupMemory::Head& m,
                                            const WarpgroupMemory::VTile& tile, const SquareTile& X,
                                            int row) {
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

__device__ __forceinline__ void gradient_chain(const WarpgroupMemory::Head& m,
                                               const WarpgroupMemory::VTile& tile,
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

// dV = beta N of the warp's 16 tokens and a tile's columns, through the place of v, and v . N.
__device__ __forceinline__ void value_gradients(float (&vN)[2], const SquareTile& N,
                                                const SquareTile& v, int row, const float* beta,
                                                bfloat16* dv, int stride, int rows) {
#pragma unroll
  for (int column = 0; column < kVTile; column += kBlock) {
    const OperandA<bfloat16> n = load_a_transposed(N, row, column);
    const OperandA<bfloat16> values = load_a(v, row, column);
    Accumulator scaled;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      vN[e / 2 % 2] += value(values, e) * value(n, e);
      scaled[e] = beta[row + row_of(e)] * value(n, e);
    }
    __syncwarp();  // the values have been read
    store(v, row, column, scaled);
  }
  __syncwarp();
  constexpr int kPieces = kVTile / 8, kPass = 32 / kPieces;
  const int first = lane_index() / kPieces, column = lane_index() % kPieces * 8;
#pragma unroll 1
  for (int r = first; r < kBlock && r < rows; r += kPass)
    *reinterpret_cast<uint4*>(dv + int64_t{r} * stride + column) =
        *reinterpret_cast<const uint4*>(v.at(row + r, column));
}

// This thread's part of <dS, S>: rows of cores, neighbours one behind the other.
__device__ __forceinline__ float dot_states(const WarpgroupMemory::VTile& tile) {
  constexpr int kCores = kTokens / 8 * (kK / 8), kAtOnce = 128 / 8;
  static_assert(kCores % kAtOnce == 0);
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int first = thread / 8 * KeyTile::kCore + thread % 8 * 8;
  float sum = 0;
#pragma unroll
  for (int core = 0; core < kCores; core += kAtOnce) {
    const int place = first + core * KeyTile::kCore;
    const uint4 S = *reinterpret_cast<const uint4*>(tile.S.data + place);
    const uint4 dS = *reinterpret_cast<const uint4*>(tile.dS.data + place);
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

// Where element e of a block lies in Z, from the lane's first element on.
__device__ constexpr int z_offset(int e) {
  return e / 2 % 2 * 8 * kZStride + e % 2 + e / 4 * 8;
}

// dP -> B = s Gam o dP, over P, and Z = dP o P.
__device__ __forceinline__ void make_B(const Accumulator (&dP)[kTokenBlocks], float* Z,
                                       const WarpgroupMemory::Head& m, int row, float scale) {
  const TwoRows rows = two_rows(*m.gates, row);
  float* place = Z + (row + row_of(0)) * kZStride + column_of(0);
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j) {
    const SquareTile tile = {m.P.all().at(row, j * kBlock)};
    const OperandA<bfloat16> P = load_a(tile, 0, 0);
    Accumulator B;
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const Gates::Row& t = rows.of(e);
      const int u = j * kBlock + column_of(e);
      place[j * kBlock + z_offset(e)] = u < t.token ? dP[j][e] * value(P, e) : 0;
      B[e] = t.reaches(u) ? scale * m.gates->between(t, u) * dP[j][e] : 0;
    }
    __syncwarp();
    store(tile, 0, 0, B);
  }
}

// N X^T -> beta o dA, dA = -Gam o N X^T, over Tg, Z = beta o dA o K K^T, and the row sums of
// dA o K K^T.
__device__ __forceinline__ void make_dA(Accumulator (&NX)[kTokenBlocks],
                                        const Accumulator (&KK)[kTokenBlocks], float* Z, float* kdA,
                                        const WarpgroupMemory::Head& m, int row) {
  const TwoRows rows = two_rows(*m.gates, row);
  const float beta[2] = {m.gates->beta[rows.row[0].token], m.gates->beta[rows.row[1].token]};
  float* place = Z + (row + row_of(0)) * kZStride + column_of(0);
  float upper = 0, lower = 0;
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const Gates::Row& t = rows.of(e);
      const int u = j * kBlock + column_of(e);
      const float x = t.reaches(u) && u < t.token ? -m.gates->between(t, u) * NX[j][e] : 0;
      const float part = x * KK[j][e];
      (e / 2 % 2 ? lower : upper) += part;
      place[j * kBlock + z_offset(e)] = beta[e / 2 % 2] * part;
      NX[j][e] = beta[e / 2 % 2] * x;
    }
    store(m.inverse.all(), row, j * kBlock, NX[j]);
  }
  set_row_sums(kdA, row / kBlock, upper, lower);
}

// rectangle[t] = sum of Z_ij over i >= t, j < t, Z the sum of two: prefix sums along the rows, then
// sums down the columns; four lanes a row or column, 16 elements each, 256 threads.
__device__ inline void sum_rows(float* Z, const float* other) {
  const int line = static_cast<int>(threadIdx.x) / 4, part = lane_index() % 4;
  const int begin = line * kZStride + part * kBlock;
  float sums[kBlock];
#pragma unroll
  for (int j = 0; j < kBlock; ++j) sums[j] = Z[begin + j] + other[begin + j];
#pragma unroll
  for (int j = 1; j < kBlock; ++j) sums[j] += sums[j - 1];
  float before = 0;
#pragma unroll
  for (int left = 0; left < 3; ++left) {
    const float theirs = __shfl_sync(kAllLanes, sums[kBlock - 1], lane_index() / 4 * 4 + left);
    if (left < part) before += theirs;
  }
#pragma unroll
  for (int j = 0; j < kBlock; ++j) Z[begin + j] = before + sums[j];
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
  const WarpgroupMemory& memory;
  const ChunkPlace& p;
  const WarpgroupMemory::Head m;
  int turn;

  // The warp's first row of its group's 64; found anew where it is used, as all that a thread's
  // place gives: the products need the registers.
  __device__ __forceinline__ int row() const { return thread_index() / 32 % 4 * kBlock; }
  __device__ __forceinline__ int tiles() const { return a.in.V / kVTile; }
  __device__ __forceinline__ int count(int n) const { return turn * tiles() + n; }
  // Memory of the stage that no tile is in behind the walk.
  __device__ __forceinline__ float* spare() const {
    return reinterpret_cast<float*>(memory.stage(count(tiles() - 1)));
  }
  __device__ __forceinline__ float* Z2() const { return reinterpret_cast<float*>(memory.chains); }

  // Tile by tile: the chains, then the sums.
  template <class Chain, class Sum>
  __device__ __forceinline__ void walk(Chain&& chain, Sum&& sum) const {
#pragma unroll 1
    for (int n = 0; n < tiles(); ++n) {
      cp_async_wait<0>();
      meet();  // the tile is there, the one before has been read
      const WarpgroupMemory::VTile tile = memory.tile(count(n));
      chain(tile, n);
      meet();
      sum(tile, n);
    }
    meet();  // X^T, N^T and the last tile have been read
  }

  // `prepare`() makes the next chunk's gates, while the others are at their squares.
  template <class Prepare>
  __device__ __forceinline__ void group_0(Prepare&& prepare) const {
    Accumulator wide[kKeyBlocks];
    float vN[2] = {};
    walk([&](const auto& tile, int) { write_chain(m, tile, memory.X(), row()); },
         [&](const auto& tile, int n) {
           warpgroup_begin();
           add_product<false>(wide, tile.dout, tile.S);
           warpgroup_commit();
           value_gradients(
               vN, memory.N(), tile.v, row(), m.gates->beta,
               a.dv + (first_row(a.in, p) + int64_t{row()} * a.in.H) * a.in.V + n * kVTile,
               a.in.H * a.in.V, p.tokens - row());
           warpgroup_wait<0>();
         });
    set_row_sums(memory.sums->vN, row() / kBlock, vN[0], vN[1]);
    set_row_dots(memory.sums->qdq, wide, m.q, row());
    scale_rows(wide, *m.gates, m.gates->D, row(),
               [&](int t) { return a.in.scale * m.gates->D[t]; });
    prepare();
    meet();
    warpgroup_begin();
    add_product<false>(wide, m.P.all(), m.k);
    warpgroup_commit();
    sum_rows(Z2(), spare());
    warpgroup_wait<0>();
    write_rows(a.dq, a.in, p, wide, row());
    meet();
    sum_columns(Z2(), memory.sums->rectangle);
  }

  __device__ __forceinline__ void group_1() const {
    Accumulator wide[kKeyBlocks], square[kTokenBlocks];
    walk([&](const auto& tile, int) { gradient_chain(m, tile, memory.N(), row()); },
         [&](const auto& tile, int) {
           warpgroup_begin();
           add_product<true>(wide, memory.N(), tile.S);
           add_product<true>(square, memory.N(), memory.X());
           warpgroup_commit();
           warpgroup_wait<0>();
         });
    set_row_dots(memory.sums->kM, wide, m.k, row());
    scale_rows(wide, *m.gates, m.gates->D, row(),
               [&](int t) { return -m.gates->D[t] * m.gates->beta[t]; });
    Accumulator KK[kTokenBlocks];
    warpgroup_begin();
    multiply_tiles(KK, m.k, m.k);
    warpgroup_commit();
    warpgroup_wait<0>();
    make_dA(square, KK, spare(), memory.sums->kdA, m, row());
    float* handed = spare() + WarpgroupMemory::kZElements + static_cast<int>(threadIdx.x) % 128;
#pragma unroll
    for (int n = 0; n < kKeyBlocks; ++n)
#pragma unroll
      for (int e = 0; e < 8; ++e) handed[(8 * n + e) * 128] = wide[n][e];
    meet();
    sum_rows(Z2(), spare());
    meet();
    sum_columns(Z2(), memory.sums->rectangle);
  }

  // `fetch`(n) asks for what comes behind tile n.
  template <class Fetch>
  __device__ __forceinline__ void group_2(Fetch&& fetch) const {
    Accumulator wide[kKeyBlocks], square[kTokenBlocks];
    float states = 0;
    walk([&](const auto&, int n) { fetch(n); },
         [&](const auto& tile, int) {
           warpgroup_begin();
           add_product<true>(wide, memory.X(), tile.dS);
           add_product<false>(square, tile.dout, memory.X());
           warpgroup_commit();
           states += dot_states(tile);
           warpgroup_wait<0>();
         });
    make_B(square, Z2(), m, row(), a.in.scale);
    for (int lanes = 1; lanes < 32; lanes *= 2) states += __shfl_xor_sync(kAllLanes, states, lanes);
    if (lane_index() == 0) memory.sums->states[row() / kBlock] = states;
    set_row_dots(memory.sums->kdk, wide, m.k, row());
    scale_rows(wide, *m.gates, m.gates->E, row(), [&](int t) { return m.gates->E[t]; });
    meet();
    const float* handed =
        spare() + WarpgroupMemory::kZElements + static_cast<int>(threadIdx.x) % 128;
#pragma unroll
    for (int n = 0; n < kKeyBlocks; ++n)
#pragma unroll
      for (int e = 0; e < 8; ++e) wide[n][e] += handed[(8 * n + e) * 128];
    warpgroup_begin();
    add_product<true>(wide, m.P.all(), m.q);
    add_product<true>(wide, m.inverse.all(), m.k);
    add_product<false>(wide, m.inverse.all(), m.k);
    warpgroup_commit();
    warpgroup_wait<0>();
    write_rows(a.dk, a.in, p, wide, row());
    meet();
  }
};

// A block takes every gridDim.x-th chunk. Tiles are asked for one tile ahead, keys, queries, T0 and
// gates of the next chunk with its first tile.
__global__ void __launch_bounds__(kThreads, 1)
    backward_wgmma_kernel(BackwardArgs<bfloat16> a, int chunks) {
  SharedMemory shared;
  const WarpgroupMemory memory(shared);
  const WarpgroupFeed feed{a, memory};
  const int warp = uniform_warp_index();
  const auto chunk_of = [&](int turn) {
    return static_cast<int>(blockIdx.x) + turn * static_cast<int>(gridDim.x);
  };
  const auto gates = [&](int turn) {
    if (warp == kGateWarp && chunk_of(turn) < chunks)
      make_gates(*memory.head(turn).gates, GateInputs(a.in, feed.place(chunk_of(turn))));
  };
  clear({memory.P});
  __syncthreads();
  if (warp / 4 == 2) {
    feed.head(0, feed.place(chunk_of(0)));
    feed.tile(0, feed.place(chunk_of(0)), 0);
    cp_async_commit();
  }
  gates(0);

#pragma unroll 1
  for (int turn = 0; chunk_of(turn) < chunks; ++turn) {
    __syncwarp();  // the last chunk's scalars are written
    if (threadIdx.x == 0) *memory.place = feed.place(chunk_of(turn));
    const ChunkPlace& p = *memory.place;
    const Chunk c{a, memory, p, memory.head(turn), turn};
    cp_async_wait<0>();
    __syncthreads();
    gate_triangles<kK>(c.m.inverse, c.m.P, c.m.q, c.m.k, *c.m.gates, a.in.scale);
    switch (warp / 4) {
      case 0:
        c.group_0([&] { gates(turn + 1); });
        break;
      case 1:
        c.group_1();
        break;
      default:
        c.group_2([&](int n) { feed.after(turn, n, p, chunk_of(turn + 1), chunks); });
    }
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
         has_warpgroups() && has_shared_memory(WarpgroupMemory::bytes());
}

void delta_chunk_backward_wgmma(Context& context, const DeltaChunkBackward& a) {
  const BackwardArgs<bfloat16> args = backward_args<bfloat16>(a);
  const int chunks = static_cast<int>(a.in.q.dim(0) * a.in.T_zero.dim(1) * a.in.q.dim(2));
  launch(context, backward_wgmma_kernel,
         Shape{.grid = dim3(static_cast<unsigned>(std::min(chunks, multiprocessors()))),
               .threads = kThreads,
               .shared_bytes = WarpgroupMemory::bytes()},
         args, chunks);
}

}  // namespace kla::KLA_BACKEND
