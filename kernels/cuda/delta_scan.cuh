// What the two scans of the delta rule share: who walks over which chunks, the tiles, gates and
// triangles that are made for the steps ahead, and products with the state that stays in
// accumulators (delta_scan.cu, delta_reverse_scan.cu).
#pragma once

#include "kernels/cuda/delta_tile.cuh"

namespace kla::KLA_BACKEND {

// Where a warp's rows of the state lie in shared memory: delta_scan_wide.cuh.
template <class T, int kK>
inline constexpr bool kStateInShared = sizeof(T) == 4 || kK > 128;

// Both scans: a block walks over the chunks of one head, in steps; a warp owns 16 columns of V and
// keeps their rows of the transposed state in accumulators, K/2 registers a lane, from the first
// step to the last. Where it looks ahead, a step is one barrier: while its products run, the tiles
// and gates of the step after next arrive and the triangles of the next one are made, by whichever
// warps are early. Else a step fetches its own.
template <class T, int kK>
struct ScanShape {
  static_assert(!kStateInShared<T, kK>);
  static constexpr bool kAhead = kK <= 96;
  static constexpr int kStages = kAhead ? 3 : 1, kTriangles = kAhead ? 2 : 1;
  static constexpr int kMaxWarps = kAhead ? 12 : 6;
  static constexpr int kThreads = 32 * kMaxWarps;
  static constexpr int kStride = padded<T>(kK);

  static size_t shared_bytes(int warps) {
    SharedSize size;
    size.array<T>(kStages * kTokens * kStride);
    size.array<T>(kStages * kTokens * kStride);
    size.array<T>(kStages * kTokens * padded<T>(kBlock * warps));
    size.array<T>(kStages * Triangle<T>::kElements);
    size.array<T>(kTriangles * Triangle<T>::kElements);
    size.array<Gates>(kStages);
    return size.bytes();
  }
};

// Shared memory of a scan; `values` is v, or dO in the reverse scan.
template <class T, int kK>
struct ScanMemory {
  using Shape = ScanShape<T, kK>;
  struct Stage {
    Tile<T> q, k, values;
    Triangle<T> inverse, P;
    Gates* gates;
  };
  T *q, *k, *values, *inverse, *P;
  Gates* gates;

  __device__ explicit ScanMemory(SharedMemory& shared) {
    q = shared.array<T>(Shape::kStages * kTokens * Shape::kStride);
    k = shared.array<T>(Shape::kStages * kTokens * Shape::kStride);
    values = shared.array<T>(Shape::kStages * kTokens * values_stride());
    inverse = shared.array<T>(Shape::kStages * Triangle<T>::kElements);
    P = shared.array<T>(Shape::kTriangles * Triangle<T>::kElements);
    gates = shared.array<Gates>(Shape::kStages);
  }
  __device__ static int values_stride() { return padded<T>(kBlock * warp_count()); }
  __device__ Stage stage(int step) const {
    const int s = step % Shape::kStages;
    return {{q + s * kTokens * Shape::kStride, Shape::kStride},
            {k + s * kTokens * Shape::kStride, Shape::kStride},
            {values + s * kTokens * values_stride(), values_stride()},
            {inverse + s * Triangle<T>::kElements},
            {P + step % Shape::kTriangles * Triangle<T>::kElements},
            gates + s};
  }
};

// Which head and columns of V a warp has. Blocks of one head are neighbours in the grid: its keys
// and queries then come from the cache.
struct ScanPlace {
  int b, h, column;  // the warp's first column of V
  __device__ ScanPlace(int sequence, int head, int first) : b(sequence), h(head), column(first) {}
  __device__ ScanPlace(int H, int slices) {
    const int block = static_cast<int>(blockIdx.x);
    const int head = block / slices, slice = block % slices;
    b = head / H;
    h = head % H;
    column = (slice * warp_count() + warp_index()) * kBlock;
  }
};

// Brings what the steps of a scan need, from the first chunk to the last or the other way.
template <class T, int kK, bool kReverse>
struct ScanFeed {
  using Shape = ScanShape<T, kK>;
  const DeltaPointers<T>& in;
  const T* values;
  const ScanMemory<T, kK>& memory;
  const ScanPlace& at;

  __device__ ChunkPlace place(int step) const {
    return chunk_place(in, at.b, kReverse ? in.NC - 1 - step : step, at.h);
  }
  __device__ bool makes_gates() const { return warp_index() == warp_count() - 1; }

  __device__ void copy(int step) const {
    if (step >= in.NC) return;
    const auto to = memory.stage(step);
    const ChunkPlace p = place(step);
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    const int64_t row = first_row(in, p);
    copy_tile<kK>(to.k, in.k + row * in.K, in.H * in.K, p.tokens, in.K, thread, threads);
    copy_tile<kK>(to.q, in.q + row * in.K, in.H * in.K, p.tokens, in.K, thread, threads);
    copy_tile<kBlock>(Tile<T>{to.values.at(0, warp_index() * kBlock), to.values.stride},
                      values + row * in.V + at.column, in.H * in.V, p.tokens, kBlock, lane_index(),
                      32);
    copy_triangle(to.inverse, in.T_zero + chunk_index(in, p) * kTokens * kTokens, warp_index(),
                  warp_count(), lane_index());
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

  __device__ void begin() const {
    copy(0);
    gates(0, gate_inputs(0));
    if constexpr (Shape::kAhead) {
      copy(1);
      gates(1, gate_inputs(1));
      cp_async_wait<0>();
      __syncthreads();
      triangles(0);
    }
  }
  // On return the step's tiles, gates and triangles are there.
  __device__ void enter(int step) const {
    if constexpr (Shape::kAhead) {
      const GateInputs inputs = gate_inputs(step + 2);
      cp_async_wait<0>();
      __syncthreads();  // the stage of the last step is free
      copy(step + 2);
      gates(step + 2, inputs);
      triangles(step + 1);
    } else {
      cp_async_wait<0>();
      __syncthreads();
      triangles(step);
      __syncthreads();
    }
  }
  __device__ void leave(int step) const {
    if constexpr (!Shape::kAhead) {
      __syncthreads();
      copy(step + 1);
      gates(step + 1, gate_inputs(step + 1));
    }
  }
};

// The warp's rows of a [B,H,V,K] state.
template <class T>
__device__ int64_t carried_state(const DeltaPointers<T>& in, const ScanPlace& at) {
  return (int64_t{at.b * in.H + at.h} * in.V + at.column) * in.K;
}

struct ScanGrid {
  int slices, warps;
};

// Blocks a head and warps a block, in equal shares that divide V: what takes least time where a
// multiprocessor has one block at a time, and a step takes as long as eight warps' share of the
// multiprocessor and one more for each warp of the block. Eight fits an H100 at K 96: 12 warps in
// one round took 0.60 ms, 6 in three rounds 1.44 ms for twice the heads. Results do not depend on
// it: warps do not exchange sums.
template <class T, int kK>
ScanGrid scan_grid(int64_t heads, int64_t V) {
  using Scan = ScanShape<T, kK>;
  constexpr int64_t kFixed = 8;
  const int64_t columns = V / kBlock, at_once = multiprocessors();
  ScanGrid best{};
  int64_t least = 0;
  for (int64_t warps = std::min<int64_t>(Scan::kMaxWarps, columns); warps > 0; --warps) {
    if (columns % warps != 0) continue;
    if (warps > 1 && !has_shared_memory(Scan::shared_bytes(static_cast<int>(warps)))) continue;
    const int64_t slices = columns / warps;
    const int64_t time = (heads * slices + at_once - 1) / at_once * (kFixed + warps);
    if (best.warps != 0 && time >= least) continue;
    least = time;
    best = {static_cast<int>(slices), static_cast<int>(warps)};
  }
  return best;
}

// The state of a warp: blocks of [16 V columns x 16 keys], and the same as left operands.
template <int kBlocks>
__device__ __forceinline__ void load_state(Accumulator (&S)[kBlocks], const float* from, int K) {
#pragma unroll
  for (int c = 0; c < kBlocks; ++c)
    S[c] = from && c * kBlock < K ? load_global(from + c * kBlock, K) : Accumulator{};
}
template <class Block, int kBlocks>
__device__ __forceinline__ void store_state(const Block (&S)[kBlocks], float* to, int K) {
#pragma unroll
  for (int c = 0; c < kBlocks; ++c)
    if (c * kBlock < K) store_global(to + c * kBlock, K, kBlock, S[c]);
}
template <int kBlocks>
__device__ __forceinline__ void store_state(const OperandA<bfloat16> (&s)[kBlocks], bfloat16* to,
                                            int K) {
  bfloat16* place = to + int64_t{lane_index() / 4} * K + sector_column();
#pragma unroll
  for (int half = 0; half < 2; ++half, place += 8 * K)
#pragma unroll
    for (int c = 0; c < kBlocks; ++c) {
      const uint2 four = sector_part(s[c], half);
      if (c * kBlock < least_keys(kBlocks * kBlock) || c * kBlock < K)
        *reinterpret_cast<uint2*>(place + c * kBlock) = four;
    }
}
template <class T, int kBlocks>
__device__ __forceinline__ void round_state(const Accumulator (&S)[kBlocks],
                                            OperandA<T> (&s)[kBlocks]) {
#pragma unroll
  for (int c = 0; c < kBlocks; ++c) s[c] = operand<T>(S[c]);
}
template <int kBlocks>
__device__ __forceinline__ void decay_state(Accumulator (&S)[kBlocks], const Gates& gates) {
  if (gates.resets != 0) {
#pragma unroll
    for (int c = 0; c < kBlocks; ++c) S[c] = Accumulator{};
  }
  const float gamma = gates.gamma;
#pragma unroll
  for (int c = 0; c < kBlocks; ++c)
#pragma unroll
    for (int e = 0; e < 8; ++e) S[c][e] *= gamma;
}

// Blocks `first` and following of tokens S, transposed.
template <class T, int kBlocks, int kCount>
__device__ __forceinline__ void read_state(const OperandA<T> (&s)[kBlocks], const Tile<T>& tokens,
                                           int first, Accumulator (&R)[kCount]) {
#pragma unroll
  for (int c = 0; c < kBlocks; ++c)
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      multiply_add(R[i], s[c], load_b_transposed(tokens, (first + i) * kBlock, c * kBlock));
}

// S += a times the 16 rows of a token tile that start at block i.
template <int kBlocks, class T>
__device__ __forceinline__ void add_to_state(Accumulator (&S)[kBlocks], const OperandA<T>& a,
                                             const Tile<T>& tokens, int i) {
#pragma unroll
  for (int c = 0; c < kBlocks; ++c) multiply_add(S[c], a, load_b(tokens, i * kBlock, c * kBlock));
}

}  // namespace kla::KLA_BACKEND
