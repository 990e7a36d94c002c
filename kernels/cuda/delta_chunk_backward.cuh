// What a block of the chunk backward keeps where: its arguments, tile shapes, shared memory,
// and what each warp adds up (delta_chunk_backward.cu).
#pragma once

#include "kernels/cuda/delta_tile.cuh"

namespace kla::KLA_BACKEND {

inline constexpr int kMostParts = 3;  // of the key columns, one for each four warps
inline constexpr int kZStride = kTokens + 1;

template <class T>
struct BackwardArgs {
  DeltaPointers<T> in;
  T *dq, *dk, *dv;
  float *dbeta, *dg;
  const T *dout, *S_enter, *dS_leave;
};

template <class T>
BackwardArgs<T> backward_args(const DeltaChunkBackward& a) {
  return {.in = delta_pointers<T>(a.in, a.in.v.dim(3)),
          .dq = pointer<T>(a.dq),
          .dk = pointer<T>(a.dk),
          .dv = pointer<T>(a.dv),
          .dbeta = pointer<float>(a.dbeta),
          .dg = pointer<float>(a.dg),
          .dout = pointer<T>(a.dout),
          .S_enter = pointer<T>(a.S_enter),
          .dS_leave = pointer<T>(a.dS_leave)};
}

template <class T, int kK>
struct BackwardShape {
  static constexpr bool kFast = sizeof(T) == 2 && kK <= 96;  // what models are trained with
  static constexpr int kParts = kFast ? kMostParts : 2, kWarps = kTokenBlocks * kParts;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kVTile = kFast ? 96 : sizeof(T) != 2 ? 16 : kK <= 128 ? 64 : 32;
  static constexpr int kStages = kFast ? 2 : 1;
  static constexpr int kSquares =
      (2 * kLowerBlocks + kWarps - 1) / kWarps;                   // 16x16 blocks of dP, dA a warp
  static constexpr bool kKeepQ = sizeof(T) == 2 || kK <= 128;     // else read again at the end
  static constexpr int kMostColumns = sizeof(T) == 2 ? 128 : 32;  // split operands take registers
  static constexpr int kColumns = kK < kMostColumns ? kK : kMostColumns;  // of the keys, at a time
  static constexpr int kBlocks = (kColumns / kBlock + kParts - 1) / kParts;  // a warp
  // Every warp has all of them, each time.
  static constexpr bool kEven = kBlocks * kParts * kBlock == kColumns && kK % kColumns == 0;
  static constexpr int kKeyStride = padded<T>(kK), kVStride = padded<T>(kVTile);
  static constexpr int kTokenStride = padded<T>(kTokens);

  // One stage: S and dS [kVTile][K], v and dO [64][kVTile].
  static constexpr int kStateElements = kVTile * kKeyStride, kValueElements = kTokens * kVStride;
  static constexpr int kStageElements = 2 * (kStateElements + kValueElements);
  static constexpr int kChainElements = kVTile * kTokenStride;  // X^T or N^T
  static constexpr int kQElements = kTokens * kKeyStride;
  static constexpr int kZElements = kTokens * kZStride * 4 / static_cast<int>(sizeof(T));
  static_assert(kStages == 1 || (2 * kChainElements >= kZElements &&
                                 kStageElements >= 2 * kQElements + Triangle<T>::kElements));
  static constexpr int larger(int a, int b) { return a > b ? a : b; }
  // Used three times: by q where it is not kept, by the walk over V, and by Z. Where there are two
  // stages, Z lies over X^T and N^T only, because the stages take the next chunk by then.
  static constexpr int kWorkElements = larger(
      larger(kStages * kStageElements + 2 * kChainElements, kZElements), kKeepQ ? 0 : kQElements);
};

// Sums over keys or values for each token, by who made them.
struct RowSums {
  float qdq[kMostParts][kTokens];           // q . (dO S)
  float kM[kMostParts][kTokens];            // k . (N S)
  float kdk[kMostParts][kTokens];           // k . (X dS)
  float vN[kMostParts][kTokens];            // v . N
  float kdA[kTokenBlocks][kTokens];         // k . (dA K), by the block of its columns
  float rectangle[kTokens];                 // sum of Z_ij over i >= t, j < t
  float states[kMostParts * kTokenBlocks];  // <dS, S>, by warp
};

template <class T, int kK>
struct BackwardMemory {
  using Layout = BackwardShape<T, kK>;
  Tile<T> k, q;
  Triangle<T> inverse, P;  // later dA and B
  Gates* gates;            // of this chunk and of the next
  RowSums* sums;
  ChunkPlace* place;  // of this chunk: four registers less through the products
  T* work;

  __device__ explicit BackwardMemory(SharedMemory& shared) {
    k = {shared.array<T>(Layout::kQElements), Layout::kKeyStride};
    inverse.data = shared.array<T>(Triangle<T>::kElements);
    P.data = shared.array<T>(Triangle<T>::kElements);
    gates = shared.array<Gates>(2);
    sums = shared.array<RowSums>(1);
    place = shared.array<ChunkPlace>(1);
    work = shared.array<T>(Layout::kWorkElements);
    q = {work, Layout::kKeyStride};
    if constexpr (Layout::kKeepQ) q.data = shared.array<T>(Layout::kQElements);
  }
  static constexpr size_t bytes() {
    SharedSize size;
    size.array<T>(Layout::kQElements);
    size.array<T>(Triangle<T>::kElements);
    size.array<T>(Triangle<T>::kElements);
    size.array<Gates>(2);
    size.array<RowSums>(1);
    size.array<ChunkPlace>(1);
    size.array<T>(Layout::kWorkElements);
    if constexpr (Layout::kKeepQ) size.array<T>(Layout::kQElements);
    return size.bytes();
  }

  struct VTile {
    Tile<T> S, dS, v, dout;
  };
  __device__ VTile tile(int n) const {
    T* stage = work + n % Layout::kStages * Layout::kStageElements;
    T* values = stage + 2 * Layout::kStateElements;
    return {{stage, Layout::kKeyStride},
            {stage + Layout::kStateElements, Layout::kKeyStride},
            {values, Layout::kVStride},
            {values + Layout::kValueElements, Layout::kVStride}};
  }
  // X^T and N^T: [kVTile][64].
  __device__ Tile<T> X() const {
    return {work + Layout::kStages * Layout::kStageElements, Layout::kTokenStride};
  }
  __device__ Tile<T> N() const { return {X().data + Layout::kChainElements, Layout::kTokenStride}; }
  __device__ float* Z() const {
    return reinterpret_cast<float*>(Layout::kStages == 2 ? X().data : work);
  }

  // The same memory, with k, q and T0 of the next chunk in the second stage.
  __device__ BackwardMemory waiting() const {
    BackwardMemory m = *this;
    m.k.data = work + Layout::kStageElements;
    m.q.data = m.k.data + Layout::kQElements;
    m.inverse.data = m.q.data + Layout::kQElements;
    return m;
  }
  // The next chunk's gates, keys, queries and T0 to their places, which frees the second stage.
  __device__ void take_waiting() const {
    const auto move = [](auto* to, const auto* from, int elements) {
      const int pieces = elements * static_cast<int>(sizeof *to) / 16;
#pragma unroll 1
      for (int i = static_cast<int>(threadIdx.x); i < pieces; i += Layout::kThreads)
        reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
    };
    static_assert(sizeof(Gates) % 16 == 0);
    move(gates, gates + 1, 1);
    if constexpr (Layout::kStages == 2) {
      const BackwardMemory from = waiting();
      move(k.data, from.k.data, Layout::kQElements);
      move(q.data, from.q.data, Layout::kQElements);
      move(inverse.data, from.inverse.data, Triangle<T>::kElements);
    }
  }

  __device__ void copy_queries(const DeltaPointers<T>& in, const ChunkPlace& p) const {
    copy_tile<kK>(q, in.q + first_row(in, p) * in.K, in.H * in.K, p.tokens, in.K,
                  static_cast<int>(threadIdx.x), Layout::kThreads);
  }
  __device__ void copy_head(const DeltaPointers<T>& in, const ChunkPlace& p) const {
    copy_tile<kK>(k, in.k + first_row(in, p) * in.K, in.H * in.K, p.tokens, in.K,
                  static_cast<int>(threadIdx.x), Layout::kThreads);
    copy_queries(in, p);
    copy_triangle(inverse, in.T_zero + chunk_index(in, p) * kTokens * kTokens, warp_index(),
                  Layout::kWarps, lane_index());
  }
  __device__ void copy_tile_of_values(const BackwardArgs<T>& a, const ChunkPlace& p, int n) const {
    const VTile to = tile(n);
    const int thread = static_cast<int>(threadIdx.x), K = a.in.K;
    const int V = a.in.V, column = n * Layout::kVTile;
    const int columns = V - column < Layout::kVTile ? V - column : Layout::kVTile;
    const int64_t state = (chunk_index(a.in, p) * V + column) * K;
    const int64_t row = first_row(a.in, p) * V + column;
    const auto states = [&](const Tile<T>& tile, const T* from) {
      copy_tile<kK, Layout::kVTile>(tile, from + state, K, columns, K, thread, Layout::kThreads);
    };
    const auto values = [&](const Tile<T>& tile, const T* from) {
      copy_tile<Layout::kVTile>(tile, from + row, a.in.H * V, p.tokens, columns, thread,
                                Layout::kThreads);
    };
    states(to.S, a.S_enter);
    states(to.dS, a.dS_leave);
    values(to.v, a.in.v);
    values(to.dout, a.dout);
    cp_async_commit();
  }
};

// What a warp adds up over V: its blocks of dO S, N S, X dS and of the squares dP and N X^T, a
// lane's part of v . N for two tokens, and <dS, S>.
template <class Layout>
struct Sums {
  static constexpr int kBlocks = Layout::kBlocks;
  Accumulator dOS[kBlocks], M[kBlocks], XdS[kBlocks], square[Layout::kSquares];
  float vN[2] = {}, states = 0;
};
template <class T, int kK>
using SumsOf = Sums<BackwardShape<T, kK>>;

// Where a warp's work lies: 16 tokens, and columns of the keys.
struct Share {
  int warp;
  int i;             // block of tokens
  int part;          // of the columns
  int begin, count;  // its blocks of 16 columns
};

// A warp's share of the `columns` key columns from `first`.
template <int kBlocks>
__device__ Share share_of(int warp, int first, int columns) {
  const int part = warp / kTokenBlocks, left = columns / kBlock - part * kBlocks;
  return {.warp = warp,
          .i = warp % kTokenBlocks,
          .part = part,
          .begin = first / kBlock + part * kBlocks,
          .count = left < 0         ? 0
                   : left < kBlocks ? left
                                    : kBlocks};
}

// What tokens 2 lane and 2 lane + 1 add to their scalars, and <dS, S>, of which lanes have parts.
struct TokenSums {
  float2 qdq, kM, kdk;  // q . (dO S), k . (N S), k . (X dS)
  float2 vN, kdA;       // v . N, k . (dA K)
  float2 rectangle;     // sum of Z_ij over i >= t, j < t
  float states;
};

// Equations (9) and (7.1), by one warp: dg sums x over i >= t and y over i < t.
template <class T>
__device__ __forceinline__ void write_scalars(const BackwardArgs<T>& a, const ChunkPlace& p,
                                              const Gates& gates, TokenSums s) {
  const int lane = lane_index(), t = 2 * lane;
  const float2 D = *reinterpret_cast<const float2*>(gates.D + t);
  const float2 E = *reinterpret_cast<const float2*>(gates.E + t);
  const float2 beta = *reinterpret_cast<const float2*>(gates.beta + t);
  const float2 x = {decayed(D.x, a.in.scale * s.qdq.x - beta.x * s.kM.x),
                    decayed(D.y, a.in.scale * s.qdq.y - beta.y * s.kM.y)};
  const float2 y = {decayed(E.x, s.kdk.x), decayed(E.y, s.kdk.y)};
  float from = x.x + x.y, before = y.x + y.y;  // over this lane's tokens and all after, before
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const float later = __shfl_down_sync(kAllLanes, from, distance);
    const float earlier = __shfl_up_sync(kAllLanes, before, distance);
    if (lane + distance < 32) from += later;
    if (lane >= distance) before += earlier;
    s.states += __shfl_xor_sync(kAllLanes, s.states, distance);
  }
  float after = __shfl_down_sync(kAllLanes, from, 1);
  before = __shfl_up_sync(kAllLanes, before, 1);
  if (lane == 31) after = 0;
  if (lane == 0) before = 0;
  const float through = decayed(gates.gamma, s.states);
  const int64_t token = first_row(a.in, p) + int64_t{t} * a.in.H;
  if (t < p.tokens) {
    a.dg[token] = from + before + s.rectangle.x + through;
    a.dbeta[token] = s.vN.x - decayed(D.x, s.kM.x) + s.kdA.x;
  }
  if (t + 1 < p.tokens) {
    a.dg[token + a.in.H] = x.y + after + (before + y.x) + s.rectangle.y + through;
    a.dbeta[token + a.in.H] = s.vN.y - decayed(D.y, s.kM.y) + s.kdA.y;
  }
}

// Sum over the four lanes that hold a row.
__device__ inline float sum_of_quad(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

// Sets the sums of 16 rows from what each lane has of rows g and g + 8.
__device__ inline void set_row_sums(float* sums, int block, float upper, float lower) {
  upper = sum_of_quad(upper);
  lower = sum_of_quad(lower);
  if (lane_index() % 4 != 0) return;
  sums[block * kBlock + lane_index() / 4] = upper;
  sums[block * kBlock + lane_index() / 4 + 8] = lower;
}

// dV = beta N of 16 tokens and 16 columns of V to `dv`, and v . N.
template <class T>
__device__ __forceinline__ void value_gradient(float (&vN)[2], const OperandA<T>& N,
                                               const OperandA<T>& v, const float* beta, T* dv,
                                               int stride, int rows) {
  Accumulator scaled;
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    vN[e / 2 % 2] += value(v, e) * value(N, e);
    scaled[e] = beta[row_of(e)] * value(N, e);
  }
  store_global(dv, stride, rows, scaled);
}

// Rows times their factors, which are zero where `decay`, D or E, is: selected where a document
// boundary makes it so. `first` is the first of the 16 tokens.
template <int kBlocks, class Factor>
__device__ __forceinline__ void scale_rows(Accumulator (&c)[kBlocks], const Gates& gates,
                                           const float* decay, int first, Factor&& factor) {
  if (gates.resets != 0) {
#pragma unroll
    for (int n = 0; n < kBlocks; ++n)
#pragma unroll
      for (int e = 0; e < 8; ++e)
        if (decay[first + row_of(e)] == 0) c[n][e] = 0;
  }
#pragma unroll
  for (int n = 0; n < kBlocks; ++n)
#pragma unroll
    for (int e = 0; e < 8; ++e) c[n][e] *= factor(first + row_of(e));
}

}  // namespace kla::KLA_BACKEND
