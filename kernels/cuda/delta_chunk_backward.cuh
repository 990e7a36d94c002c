// What a block of the chunk backward keeps where: its arguments, tile shapes and shared memory
// (delta_chunk_backward.cu).
#pragma once

#include "kernels/cuda/delta_tile.cuh"

namespace kla::KLA_BACKEND {

inline constexpr int kWarps = 8;
inline constexpr int kHalves = 2;
inline constexpr int kSquares =
    (2 * kLowerBlocks + kWarps - 1) / kWarps;  // 16x16 blocks of dP, dA a warp
inline constexpr int kZStride = kTokens + 1;

template <class T>
struct BackwardArgs {
  DeltaPointers<T> in;
  T *dq, *dk, *dv;
  float *dbeta, *dg;
  const T *dout, *S_enter, *dS_leave;
};

template <class T, int kK>
struct BackwardShape {
  static constexpr bool kWide = kK > (sizeof(T) == 2 ? 128 : 96);
  static constexpr int kVTile = (sizeof(T) == 2 ? 64 : 32) / (kWide ? 2 : 1);
  static constexpr int kStages = sizeof(T) == 2 && kK <= 96 ? 2 : 1;
  static constexpr bool kKeepQ = sizeof(T) == 2 || kK <= 128;  // else read again at the end
  static constexpr int kColumns = kK < 128 ? kK : 128;         // of the keys, at a time
  static constexpr int kBlocks = (kColumns / kBlock + kHalves - 1) / kHalves;  // a warp
  static constexpr int kKeyStride = padded<T>(kK), kVStride = padded<T>(kVTile);
  static constexpr int kTokenStride = padded<T>(kTokens);

  // One stage: S and dS [kVTile][K], v and dO [64][kVTile].
  static constexpr int kStateElements = kVTile * kKeyStride, kValueElements = kTokens * kVStride;
  static constexpr int kStageElements = 2 * (kStateElements + kValueElements);
  static constexpr int kChainElements = kVTile * kTokenStride;  // X^T or N^T
  static constexpr int kQElements = kTokens * kKeyStride;
  static constexpr int kZElements = kTokens * kZStride * 4 / static_cast<int>(sizeof(T));
  static constexpr int larger(int a, int b) { return a > b ? a : b; }
  // Used three times: by q where it is not kept, by the walk over V, and by Z.
  static constexpr int kWorkElements = larger(
      larger(kStages * kStageElements + 2 * kChainElements, kZElements), kKeepQ ? 0 : kQElements);
};

// Sums over keys or values for each token, by who made them.
struct RowSums {
  float qdq[kHalves][kTokens];       // q . (dO S)
  float kM[kHalves][kTokens];        // k . (N S)
  float kdk[kHalves][kTokens];       // k . (X dS)
  float kdA[kTokenBlocks][kTokens];  // k . (dA K), by the block of its columns
  float vN[kWarps / 2][kTokens];
  float rectangle[kTokens];  // sum of Z_ij over i >= t, j < t
  float states[kWarps];      // <dS, S>
};

template <class T, int kK>
struct BackwardMemory {
  using Layout = BackwardShape<T, kK>;
  Tile<T> k, q;
  Triangle<T> inverse, P;  // later dA and B
  Gates* gates;
  RowSums* sums;
  T* work;

  __device__ explicit BackwardMemory(SharedMemory& shared) {
    k = {shared.array<T>(Layout::kQElements), Layout::kKeyStride};
    inverse.data = shared.array<T>(Triangle<T>::kElements);
    P.data = shared.array<T>(Triangle<T>::kElements);
    gates = shared.array<Gates>(1);
    sums = shared.array<RowSums>(1);
    work = shared.array<T>(Layout::kWorkElements);
    q = {work, Layout::kKeyStride};
    if constexpr (Layout::kKeepQ) q.data = shared.array<T>(Layout::kQElements);
  }
  static size_t bytes() {
    SharedSize size;
    size.array<T>(Layout::kQElements);
    size.array<T>(Triangle<T>::kElements);
    size.array<T>(Triangle<T>::kElements);
    size.array<Gates>(1);
    size.array<RowSums>(1);
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
  __device__ float* Z() const { return reinterpret_cast<float*>(work); }

  __device__ void copy_queries(const DeltaPointers<T>& in, const ChunkPlace& p) const {
    copy_tile<kK>(q, in.q + first_row(in, p) * in.K, in.H * in.K, p.tokens, in.K, kTokens,
                  thread_index(), 32 * kWarps);
  }
  __device__ void copy_head(const DeltaPointers<T>& in, const ChunkPlace& p) const {
    copy_tile<kK>(k, in.k + first_row(in, p) * in.K, in.H * in.K, p.tokens, in.K, kTokens,
                  thread_index(), 32 * kWarps);
    copy_queries(in, p);
    copy_triangle(inverse, in.T_zero + chunk_index(in, p) * kTokens * kTokens, thread_index(),
                  32 * kWarps);
  }
  __device__ void copy_tile_of_values(const BackwardArgs<T>& a, const ChunkPlace& p, int n) const {
    const VTile to = tile(n);
    const int thread = thread_index(), K = a.in.K;
    const int V = a.in.V, column = n * Layout::kVTile;
    const int columns = V - column < Layout::kVTile ? V - column : Layout::kVTile;
    const int64_t state = (chunk_index(a.in, p) * V + column) * K;
    const int64_t row = first_row(a.in, p) * V + column;
    const auto states = [&](const Tile<T>& tile, const T* from) {
      copy_tile<kK>(tile, from + state, a.in.K, columns, K, Layout::kVTile, thread, 32 * kWarps);
    };
    const auto values = [&](const Tile<T>& tile, const T* from) {
      copy_tile<Layout::kVTile>(tile, from + row, a.in.H * V, p.tokens, columns, kTokens, thread,
                                32 * kWarps);
    };
    states(to.S, a.S_enter);
    states(to.dS, a.dS_leave);
    values(to.v, a.in.v);
    values(to.dout, a.dout);
    cp_async_commit();
  }
};

}  // namespace kla::KLA_BACKEND
