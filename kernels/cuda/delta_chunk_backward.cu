// Every gradient of the delta rule but the state's, chunk by chunk and head by head (KERNEL_MATH 6
// and 7.1). V is walked in tiles. In each, warps run the two transposed chains for 16 columns of V,
//
//   R = K S, Y = V - D R, X = Tg (beta o Y)       and       dX = P^T dO + E (K dS), N = Tg^T dX,
//
// and leave X^T and N^T in shared memory; then all warps add to what sums over V:
//
//   dP = dO X^T,  N X^T  (lower triangles)        and       dO S,  N S,  X dS  (64 x K).
//
// Row factors commute with these sums, so they wait until the end. So do the scalars: with M = N S,
// R_i.N_i = k_i.M_i gives both c^r_i = R_i.dR_i and Y_i.N_i = v_i.N_i - D_i k_i.M_i without R or Y.
//
// Warp w owns 16 tokens, w % 4, of one part, w / 4, of the key columns. Beyond 128 key
// columns the whole is done once for each 128 of them, all sums over keys being carried along.
#include "kernels/cuda/delta_chunk_backward.cuh"
#include "kernels/cuda/delta_chunk_backward_wgmma.h"

namespace kla::KLA_BACKEND {
namespace {

// ---- The two chains ----------------------------------------------------------------------------

// tokens times state, transposed, for 16 rows of a [V][K] tile: (K S)^T block by block.
template <int kK, class T>
__device__ __forceinline__ void read_tile(const Tile<T>& state, int column, const Tile<T>& k,
                                          Accumulator (&R)[kTokenBlocks]) {
  [[maybe_unused]] constexpr int kUnroll = sizeof(T) == 2 ? 2 : 1;  // split operands take registers
#pragma unroll kUnroll
  for (int c = 0; c < kK; c += kBlock) {
    const OperandA<T> s = load_a(state, column, c);
#pragma unroll
    for (int i = 0; i < kTokenBlocks; ++i)
      multiply_add(R[i], s, load_b_transposed(k, i * kBlock, c));
  }
}

template <class T, int kK>
__device__ __forceinline__ void write_chain(const BackwardMemory<T, kK>& m,
                                            const typename BackwardMemory<T, kK>::VTile& tile,
                                            int column) {
  Accumulator R[kTokenBlocks];
  read_tile<kK>(tile.S, column, m.k, R);
  forget(R, *m.gates, m.gates->D);
  OperandA<T> Yb[kTokenBlocks];
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j) Yb[j] = weighted_errors(R[j], tile.v, column, j, *m.gates);
#pragma unroll
  for (int i = 0; i < kTokenBlocks; ++i) store(m.X(), column, i * kBlock, writes(Yb, i, m.inverse));
}

template <class T, int kK>
__device__ __forceinline__ void gradient_chain(const BackwardMemory<T, kK>& m,
                                               const typename BackwardMemory<T, kK>::VTile& tile,
                                               int column) {
  Accumulator KdS[kTokenBlocks];
  read_tile<kK>(tile.dS, column, m.k, KdS);
  forget(KdS, *m.gates, m.gates->E);
  OperandA<T> dX[kTokenBlocks];
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j)
    dX[j] = write_gradients(KdS[j], tile.dout, column, j, m.P, *m.gates);
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j)
    store(m.N(), column, j * kBlock, error_gradients(dX, j, m.inverse));
}

// ---- Sums over V -------------------------------------------------------------------------------

// What 16 columns of V add, `v` the first of them; `dv` is their place in the gradient.
template <class T, int kK>
__device__ __forceinline__ void add_columns(SumsOf<T, kK>& sums, const BackwardMemory<T, kK>& m,
                                            const typename BackwardMemory<T, kK>::VTile& tile,
                                            const Share& share, int v, T* dv, int stride,
                                            int rows) {
  using Layout = BackwardShape<T, kK>;
  const int first = share.i * kBlock;
  const OperandA<T> d = load_a(tile.dout, first, v);
  const OperandA<T> N = load_a_transposed(m.N(), first, v);
  const OperandA<T> X = load_a_transposed(m.X(), first, v);
  if (v / kBlock % Layout::kParts == share.part)
    value_gradient(sums.vN, N, load_a(tile.v, first, v), m.gates->beta + first, dv, stride, rows);
  const bool sums_states = v / kBlock % kTokenBlocks == share.i;  // once by four warps
#pragma unroll
  for (int c = 0; c < Layout::kBlocks; ++c) {
    if (!Layout::kEven && c >= share.count) break;
    const OperandB<T> S = load_b(tile.S, v, (share.begin + c) * kBlock);
    const OperandB<T> dS = load_b(tile.dS, v, (share.begin + c) * kBlock);
    multiply_add(sums.dOS[c], d, S);
    multiply_add(sums.M[c], N, S);
    multiply_add(sums.XdS[c], X, dS);
    if (sums_states) sums.states += dot(S, dS);
  }
#pragma unroll
  for (int s = 0; s < Layout::kSquares; ++s) {
    const int index = share.warp + s * Layout::kWarps;
    if (index >= 2 * kLowerBlocks) break;
    const BlockIndex block(index % kLowerBlocks);
    const OperandA<T> left = index < kLowerBlocks ? load_a(tile.dout, block.i * kBlock, v)
                                                  : load_a_transposed(m.N(), block.i * kBlock, v);
    multiply_add(sums.square[s], left, load_b(m.X(), v, block.j * kBlock));
  }
}

template <class T, int kK>
__device__ __forceinline__ void walk_values(SumsOf<T, kK>& sums, const BackwardArgs<T>& a,
                                            const ChunkPlace& p, const BackwardMemory<T, kK>& m,
                                            const Share& share) {
  using Layout = BackwardShape<T, kK>;
  constexpr int kChains = Layout::kVTile / kBlock;
  const int tiles = (a.in.V + Layout::kVTile - 1) / Layout::kVTile;
  const int column = share.warp % kChains * kBlock, stride = a.in.H * a.in.V;
#pragma unroll 1
  for (int n = 0; n < tiles; ++n) {
    const auto tile = m.tile(n);
    const int first = n * Layout::kVTile;
    const int columns = a.in.V - first < Layout::kVTile ? a.in.V - first : Layout::kVTile;
    const bool in_chain = share.warp < 2 * kChains && column < columns;
    const bool gradient = share.warp >= kChains;
    cp_async_wait<0>();
    __syncthreads();  // the tile is there; X^T and N^T of the last one have been read
    if (Layout::kStages == 2 && n + 1 < tiles) m.copy_tile_of_values(a, p, n + 1);
    if (in_chain && gradient) gradient_chain(m, tile, column);
    if (in_chain && !gradient) write_chain(m, tile, column);
    __syncthreads();  // X^T and N^T are there
    const int rows = p.tokens - share.i * kBlock;
    T* dv = a.dv + (first_row(a.in, p) + int64_t{share.i * kBlock} * a.in.H) * a.in.V + first;
    if constexpr (Layout::kFast) {
#pragma unroll
      for (int v = 0; v < Layout::kVTile; v += kBlock)
        if (v < columns) add_columns(sums, m, tile, share, v, dv + v, stride, rows);
    } else {
#pragma unroll 1
      for (int v = 0; v < columns; v += kBlock)
        add_columns(sums, m, tile, share, v, dv + v, stride, rows);
    }
    if (Layout::kStages == 1 && n + 1 < tiles) {
      __syncthreads();
      m.copy_tile_of_values(a, p, n + 1);
    }
  }
  __syncthreads();  // the work space is free
}

// ---- After the walk ----------------------------------------------------------------------------

// dP -> B = s Gam o dP over P, and N X^T -> dA = -Gam o N X^T over Tg; Z = dP o P + dA o A.
template <class T, int kK>
__device__ __forceinline__ void make_squares(const SumsOf<T, kK>& sums,
                                             const BackwardMemory<T, kK>& m, float scale) {
  using Layout = BackwardShape<T, kK>;
  const int thread = thread_index();  // anew: addresses kept from before the walk would spill
  const int lane = thread % 32, warp = thread / 32;
#pragma unroll
  for (int pass = 0; pass < 2; ++pass) {
#pragma unroll
    for (int s = 0; s < Layout::kSquares; ++s) {
      const int index = warp + s * Layout::kWarps;
      if (index / kLowerBlocks != pass) continue;
      const BlockIndex block(index % kLowerBlocks);
      const Tile<T> tile = (pass == 0 ? m.P : m.inverse).block(index % kLowerBlocks);
      float* Z = m.Z() + block.i * kBlock * kZStride + block.j * kBlock;
      Accumulator kk, result;
      OperandA<T> P;
      if (pass == 0) P = load_a(tile, 0, 0);
      if (pass == 1) kk = product_abt<kK>(m.k, block.i, m.k, block.j);
      float upper = 0, lower = 0;  // rows of dA o K K^T
      const TwoRows rows = two_rows(*m.gates, block.i * kBlock);
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const Gates::Row& i = rows.of(e);
        const int j = block.j * kBlock + column_of(e, lane);
        const bool reaches = i.reaches(j);
        const float Gam = m.gates->between(i, j), x = sums.square[s][e];
        float& z = Z[row_of(e, lane) * kZStride + column_of(e, lane)];
        if (pass == 0) {
          z = j < i.token ? x * value(P, e) : 0;
          result[e] = reaches ? scale * Gam * x : 0;
        } else {
          result[e] = reaches && j < i.token ? -Gam * x : 0;
          const float part = result[e] * kk[e];
          z += m.gates->beta[i.token] * part;
          (e / 2 % 2 ? lower : upper) += part;
        }
      }
      __syncwarp();
      store(tile, 0, 0, result);
      if (pass == 1) set_row_sums(m.sums->kdA[block.j], block.i, upper, lower);
    }
    __syncthreads();
  }
}

// rectangle[t] = sum of Z_ij over i >= t, j < t: prefix sums along the rows, then sums down the
// columns; four lanes a row or column, 16 elements each.
__device__ inline void sum_rectangles(float* Z, float* rectangle) {
  const int line = static_cast<int>(threadIdx.x) / 4, part = lane_index() % 4;
  const int end = line < kTokens ? min((part + 1) * kBlock, line) : 0;
  float sum = 0;
  for (int j = part * kBlock; j < end; ++j) Z[line * kZStride + j] = sum += Z[line * kZStride + j];
  float before = 0;
#pragma unroll
  for (int other = 0; other < 3; ++other) {
    const float theirs = __shfl_sync(kAllLanes, sum, lane_index() / 4 * 4 + other);
    if (other < part) before += theirs;
  }
  for (int j = part * kBlock; j < end; ++j) Z[line * kZStride + j] += before;
  __syncthreads();
  sum = 0;
  for (int i = max(part * kBlock, line); i < (part + 1) * kBlock; ++i)
    if (line > 0) sum += Z[i * kZStride + line - 1];
  sum = sum_of_quad(sum);
  if (part == 0 && line < kTokens) rectangle[line] = sum;
}

// sums[row] += the dots of rows of blocks with the same rows of a token tile.
template <bool kEven, int kBlocks, class T>
__device__ __forceinline__ void add_row_dots(float* sums, const Accumulator (&c)[kBlocks],
                                             const Tile<T>& tokens, const Share& share) {
  float upper = 0, lower = 0;
#pragma unroll
  for (int n = 0; n < kBlocks; ++n) {
    if (!kEven && n >= share.count) break;
    const OperandA<T> t = load_a(tokens, share.i * kBlock, (share.begin + n) * kBlock);
#pragma unroll
    for (int e = 0; e < 8; ++e) (e / 2 % 2 ? lower : upper) += c[n][e] * value(t, e);
  }
  upper = sum_of_quad(upper);
  lower = sum_of_quad(lower);
  if (lane_index() % 4 != 0) return;
  sums[share.i * kBlock + lane_index() / 4] += upper;
  sums[share.i * kBlock + lane_index() / 4 + 8] += lower;
}

// c += left times the first 16 rows of a token tile.
template <bool kEven, int kBlocks, class T>
__device__ __forceinline__ void add_tokens(Accumulator (&c)[kBlocks], const OperandA<T>& left,
                                           const Tile<T>& tokens, const Share& share) {
#pragma unroll
  for (int n = 0; n < kBlocks; ++n) {
    if (!kEven && n >= share.count) break;
    multiply_add(c[n], left, load_b(tokens, 0, (share.begin + n) * kBlock));
  }
}

template <int kBlocks, class T>
__device__ __forceinline__ void write_rows(T* to, const DeltaPointers<T>& in, const ChunkPlace& p,
                                           const Accumulator (&c)[kBlocks], const Share& share) {
  const int stride = in.H * in.K;
  T* rows =
      to + first_row(in, p) * in.K + int64_t{share.i} * kBlock * stride + share.begin * kBlock;
#pragma unroll
  for (int n = 0; n < kBlocks; ++n)
    if (n < share.count) store_global(rows + n * kBlock, stride, p.tokens - share.i * kBlock, c[n]);
}

// A tile from its block i of rows on.
template <class T>
__device__ __forceinline__ Tile<T> from_block(const Tile<T>& tile, int i) {
  return {tile.at(i * kBlock, 0), tile.stride};
}

// Equation (7): dQ = s D (dO S) + B K.
template <class T, int kK>
__device__ __forceinline__ void query_gradient(SumsOf<T, kK>& sums, const BackwardMemory<T, kK>& m,
                                               const BackwardArgs<T>& a, const ChunkPlace& p,
                                               const Share& share) {
  constexpr bool kEven = BackwardShape<T, kK>::kEven;
  add_row_dots<kEven>(m.sums->qdq[share.part], sums.dOS, m.q, share);
  scale_rows(sums.dOS, *m.gates, m.gates->D, share.i * kBlock,
             [&](int t) { return a.in.scale * m.gates->D[t]; });
  Tile<T> B = m.P.block(share.i, 0), k = m.k;
#pragma unroll 1
  for (int j = 0; j <= share.i; ++j) {
    add_tokens<kEven>(sums.dOS, load_a(B, 0, 0), k, share);
    B = from_block(B, 1);
    k = from_block(k, 1);
  }
  write_rows(a.dq, a.in, p, sums.dOS, share);
}

// Equation (8): dK = E (X dS) + dR S + B^T Q + beta o (dA K) + dA^T (beta o K), dR = -D beta N.
// What comes through the states is added up first, in X dS.
template <class T, int kK>
__device__ __forceinline__ void add_state_terms(SumsOf<T, kK>& sums, const BackwardMemory<T, kK>& m,
                                                const Share& share) {
  constexpr bool kEven = BackwardShape<T, kK>::kEven;
  const Gates& gates = *m.gates;
  add_row_dots<kEven>(m.sums->kdk[share.part], sums.XdS, m.k, share);
  add_row_dots<kEven>(m.sums->kM[share.part], sums.M, m.k, share);
  scale_rows(sums.XdS, gates, gates.E, share.i * kBlock, [&](int t) { return gates.E[t]; });
  scale_rows(sums.M, gates, gates.D, share.i * kBlock,
             [&](int t) { return -gates.D[t] * gates.beta[t]; });
#pragma unroll
  for (int n = 0; n < SumsOf<T, kK>::kBlocks; ++n)
#pragma unroll
    for (int e = 0; e < 8; ++e) sums.XdS[n][e] += sums.M[n][e];
}

template <class T, int kK>
__device__ __forceinline__ void key_gradient(SumsOf<T, kK>& sums, const BackwardMemory<T, kK>& m,
                                             const BackwardArgs<T>& a, const ChunkPlace& p,
                                             const Share& share) {
  constexpr bool kEven = BackwardShape<T, kK>::kEven;
  constexpr int kBlocks = SumsOf<T, kK>::kBlocks;
  const Gates& gates = *m.gates;
  Accumulator dAK[kBlocks];
  Tile<T> dA = m.inverse.block(share.i, 0), k = m.k;
#pragma unroll 1
  for (int j = 0; j <= share.i; ++j) {
    add_tokens<kEven>(dAK, load_a(dA, 0, 0), k, share);
    dA = from_block(dA, 1);
    k = from_block(k, 1);
  }
#pragma unroll
  for (int n = 0; n < kBlocks; ++n)
#pragma unroll
    for (int e = 0; e < 8; ++e)
      sums.XdS[n][e] += gates.beta[share.i * kBlock + row_of(e)] * dAK[n][e];
#pragma unroll 1
  for (int i = share.i; i < kTokenBlocks; ++i) {
    add_tokens<kEven>(sums.XdS, load_a_transposed(m.P.block(i, share.i), 0, 0), from_block(m.q, i),
                      share);
    const OperandA<T> column = load_a_transposed(m.inverse.block(i, share.i), 0, 0);
    Accumulator weighted;
#pragma unroll
    for (int e = 0; e < 8; ++e)
      weighted[e] = gates.beta[i * kBlock + column_of(e)] * value(column, e);
    add_tokens<kEven>(sums.XdS, operand<T>(weighted), from_block(m.k, i), share);
  }
  write_rows(a.dk, a.in, p, sums.XdS, share);
}

// Two neighbouring tokens' values.
__device__ inline float2 two(const float* values, int token) {
  return *reinterpret_cast<const float2*>(values + token);
}
__device__ inline float2 operator+(float2 a, float2 b) {
  return make_float2(a.x + b.x, a.y + b.y);
}
template <int kParts>
__device__ inline float2 two_of_all(const float (&parts)[kParts][kTokens], int token) {
  float2 sum = two(parts[0], token);
#pragma unroll
  for (int part = 1; part < kParts; ++part) sum = sum + two(parts[part], token);
  return sum;
}

__device__ inline TokenSums token_sums(const RowSums& sums) {
  const int lane = lane_index(), t = 2 * lane;
  return {.qdq = two_of_all(sums.qdq, t),
          .kM = two_of_all(sums.kM, t),
          .kdk = two_of_all(sums.kdk, t),
          .vN = two_of_all(sums.vN, t),
          .kdA = two_of_all(sums.kdA, t),
          .rectangle = two(sums.rectangle, t),
          .states = lane < kMostParts * kTokenBlocks ? sums.states[lane] : 0};
}

// The sum over the lanes of a warp to its place.
__device__ inline void add_states(float& to, float states) {
  for (int lanes = 1; lanes < 32; lanes *= 2) states += __shfl_xor_sync(kAllLanes, states, lanes);
  if (lane_index() == 0) to += states;
}

// The gradients of one chunk. On entry its gates are made; with two stages, its keys, queries and
// T0 have come too, and so has its first tile of values.
template <class T, int kK, class Prefetch>
__device__ __forceinline__ void chunk_gradients(const BackwardArgs<T>& a, const ChunkPlace& p,
                                                const BackwardMemory<T, kK>& m, int warp,
                                                Prefetch&& prefetch) {
  using Layout = BackwardShape<T, kK>;
  const int K = a.in.K;
#pragma unroll 1
  for (int first = 0; first < kK && first < K; first += Layout::kColumns) {
    const int columns = K - first < Layout::kColumns ? K - first : Layout::kColumns;
    if constexpr (Layout::kStages == 1) {
      __syncthreads();  // the triangles and q of the last columns have been read
      m.copy_head(a.in, p);
      cp_async_commit();
      if (Layout::kKeepQ) m.copy_tile_of_values(a, p, 0);
      cp_async_wait<Layout::kKeepQ ? 1 : 0>();
      __syncthreads();
    }
    gate_triangles<kK>(m.inverse, m.P, m.q, m.k, *m.gates, a.in.scale);
    if (!Layout::kKeepQ) {
      __syncthreads();
      m.copy_tile_of_values(a, p, 0);
    }
    SumsOf<T, kK> sums;
    walk_values(sums, a, p, m, share_of<Layout::kBlocks>(warp, first, columns));
    const Share share = share_of<Layout::kBlocks>(thread_index() / 32, first, columns);  // anew
    prefetch();
    add_states(m.sums->states[warp], sums.states);
    set_row_sums(m.sums->vN[share.part], share.i, sums.vN[0], sums.vN[1]);
    add_state_terms(sums, m, share);
    make_squares(sums, m, a.in.scale);
    sum_rectangles(m.Z(), m.sums->rectangle);
    if (!Layout::kKeepQ) {
      __syncthreads();
      m.copy_queries(a.in, p);
      cp_async_commit();
      cp_async_wait<0>();
      __syncthreads();
    }
    query_gradient(sums, m, a, p, share);
    key_gradient(sums, m, a, p, share);
  }
  __syncthreads();
  if (warp == 0) write_scalars(a, p, *m.gates, token_sums(*m.sums));
}

// A block takes every gridDim.x-th chunk. With two stages, the next one's first tiles and gates
// are under way from the end of the walk over V on.
template <class T, int kK>
__global__ void __launch_bounds__(BackwardShape<T, kK>::kThreads, 1)
    backward_kernel(BackwardArgs<T> a, int chunks) {
  using Layout = BackwardShape<T, kK>;
  SharedMemory shared;
  const BackwardMemory<T, kK> m(shared);
  const DeltaPointers<T>& in = a.in;
  const int warp = uniform_warp_index();
  const auto place = [&](int chunk) {
    const int n = chunk / in.H;
    return chunk_place(in, n / in.NC, n % in.NC, chunk % in.H);
  };
  const auto fetch = [&](int chunk) {
    const ChunkPlace p = place(chunk);
    if constexpr (Layout::kStages == 2) {
      m.waiting().copy_head(in, p);
      m.copy_tile_of_values(a, p, 0);
    }
    if (warp == Layout::kWarps - 1) make_gates(m.gates[1], GateInputs(in, p));
  };
  const auto next = [&] {  // by the place in shared memory: the walk needs the register
    return static_cast<int>(chunk_index(in, *m.place)) + static_cast<int>(gridDim.x);
  };
  fetch(static_cast<int>(blockIdx.x));
#pragma unroll 1
  for (int chunk = static_cast<int>(blockIdx.x); chunk < chunks; chunk = next()) {
    cp_async_wait<0>();
    __syncthreads();  // the gates and first tiles are there, the last chunk's sums have been read
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x);
         i < static_cast<int>(sizeof(RowSums) / sizeof(float)); i += Layout::kThreads)
      reinterpret_cast<float*>(m.sums)[i] = 0;
    if (threadIdx.x == 0) *m.place = place(chunk);
    m.take_waiting();
    __syncthreads();
    chunk_gradients(a, *m.place, m, warp, [&] {
      if (next() < chunks) fetch(next());
    });
  }
}

template <class T, int kK>
void launch_backward(const Context& context, const DeltaChunkBackward& a) {
  if constexpr (BackwardShape<T, kK>::kFast)  // an A100 takes the wider kernel, which needs less
    if (!has_shared_memory(BackwardMemory<T, kK>::bytes()))
      return launch_backward<T, 128>(context, a);
  static_assert(BackwardShape<T, kK>::kFast || BackwardMemory<T, kK>::bytes() <= kSharedMemory);
  const int64_t B = a.in.q.dim(0), H = a.in.q.dim(2), NC = a.in.T_zero.dim(1);
  const BackwardArgs<T> args = backward_args<T>(a);
  const int chunks = static_cast<int>(B * NC * H);
  launch(context, backward_kernel<T, kK>,
         Shape{.grid = dim3(static_cast<unsigned>(std::min(chunks, multiprocessors()))),
               .threads = BackwardShape<T, kK>::kThreads,
               .shared_bytes = BackwardMemory<T, kK>::bytes()},
         args, chunks);
}

void delta_chunk_backward(Context& context, const DeltaChunkBackward& a) {
  if (chunk_backward_on_warpgroups(context, a.in.q.dim(3), a.in.v.dim(3)))
    return delta_chunk_backward_wgmma(context, a);
  visit_head_dims(a.in.q.dim(3), a.in.v.dim(3), [&](auto width) {
    visit_compute(context, [&]<class T>(T) { launch_backward<T, width>(context, a); });
  });
}

KLA_OP(delta_chunk_backward, KLA_BACKEND, delta_chunk_backward);

}  // namespace
}  // namespace kla::KLA_BACKEND
