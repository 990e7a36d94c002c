// The scans of the delta rule where the state does not fit into registers: with more than 128 key
// columns, and in f32, whose split operands take them (delta_scan.cu, delta_reverse_scan.cu). A
// warp's rows of the transposed state lie in shared memory, K * 64 bytes, and pass through
// accumulators block by block, twice a chunk; sums are those of delta_scan.cuh, in their order.
//
// Keys and queries that leave no room for it come in slabs of their columns: from the first to the
// last while the state is read, and back while it is written.
#pragma once

#include "kernels/cuda/delta_scan.cuh"

namespace kla::KLA_BACKEND {

template <class T, int kK>
requires kStateInShared<T, kK>
struct ScanShape<T, kK> {
  static constexpr int kColumns = sizeof(T) == 4 && kK > 128 ? 64 : kK;  // of a slab
  static constexpr int kStride = padded<T>(kColumns);
  static constexpr int kMaxWarps = 4, kThreads = 32 * kMaxWarps;
  static constexpr int kStateVectors = kBlock * kK / 4;  // float4 of a warp

  static constexpr size_t shared_bytes(int warps) {
    SharedSize size;
    size.array<T>(kTokens * kStride);
    size.array<T>(kTokens * kStride);
    size.array<T>(kTokens * padded<T>(kBlock * warps));
    size.array<T>(Triangle<T>::kElements);
    size.array<T>(Triangle<T>::kElements);
    size.array<Gates>(1);
    size.array<float4>(warps * kStateVectors);
    return size.bytes();
  }
};

template <class T, int kK>
struct WideMemory {
  using Shape = ScanShape<T, kK>;
  static_assert(Shape::shared_bytes(Shape::kMaxWarps) <= kSharedMemory);
  Tile<T> q, k, values;  // a slab; `values` is v, or dO in the reverse scan
  Triangle<T> inverse, P;
  Gates* gates;
  float4* state;  // the warp's; each lane reads and writes its own elements only

  __device__ explicit WideMemory(SharedMemory& shared) {
    q = {shared.array<T>(kTokens * Shape::kStride), Shape::kStride};
    k = {shared.array<T>(kTokens * Shape::kStride), Shape::kStride};
    const int stride = padded<T>(kBlock * warp_count());
    values = {shared.array<T>(kTokens * stride), stride};
    inverse.data = shared.array<T>(Triangle<T>::kElements);
    P.data = shared.array<T>(Triangle<T>::kElements);
    gates = shared.array<Gates>(1);
    state = shared.array<float4>(warp_count() * Shape::kStateVectors) +
            warp_index() * Shape::kStateVectors;
  }

  // Block c of the state: [16 V columns x 16 keys].
  __device__ Accumulator block(int c) const {
    Accumulator S;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float4 x = state[(2 * c + half) * 32 + lane_index()];
      S[4 * half] = x.x, S[4 * half + 1] = x.y, S[4 * half + 2] = x.z, S[4 * half + 3] = x.w;
    }
    return S;
  }
  __device__ void set_block(int c, const Accumulator& S) const {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      state[(2 * c + half) * 32 + lane_index()] =
          make_float4(S[4 * half], S[4 * half + 1], S[4 * half + 2], S[4 * half + 3]);
  }
  __device__ void load_state(const float* from, int K) const {  // zeros if null
#pragma unroll 1
    for (int c = 0; c < K / kBlock; ++c)
      set_block(c, from ? load_global(from + c * kBlock, K) : Accumulator{});
  }
  __device__ void store_state(float* to, int K) const {
#pragma unroll 1
    for (int c = 0; c < K / kBlock; ++c) store_global(to + c * kBlock, K, kBlock, block(c));
  }
};

// Brings a chunk's tiles, one slab of keys and queries at a time. The block calls together.
template <class T, int kK>
struct WideFeed {
  using Shape = ScanShape<T, kK>;
  const DeltaPointers<T>& in;
  const T* values;
  const WideMemory<T, kK>& memory;

  __device__ int slabs() const { return (in.K + Shape::kColumns - 1) / Shape::kColumns; }
  // Blocks of the state that meet a slab: [begin, end).
  __device__ int begin(int slab) const { return slab * (Shape::kColumns / kBlock); }
  __device__ int end(int slab) const {
    return (slab + 1 < slabs() ? (slab + 1) * Shape::kColumns : in.K) / kBlock;
  }

  // On return all of the chunk but the triangles is there, with the first slab.
  __device__ void enter(const ChunkPlace& p, int column) const {
    copy_tile<kBlock>(Tile<T>{memory.values.at(0, warp_index() * kBlock), memory.values.stride},
                      values + first_row(in, p) * in.V + column, in.H * in.V, p.tokens, kBlock,
                      lane_index(), 32);
    copy_triangle(memory.inverse, in.T_zero + chunk_index(in, p) * kTokens * kTokens, warp_index(),
                  warp_count(), lane_index());
    if (warp_index() == 0) make_gates(*memory.gates, GateInputs(in, p));
    bring(p, 0);
  }
  __device__ void bring(const ChunkPlace& p, int slab) const {
    const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    const int first = slab * Shape::kColumns;
    const int64_t from = first_row(in, p) * in.K + first;
    copy_tile<Shape::kColumns>(memory.k, in.k + from, in.H * in.K, p.tokens, in.K - first, thread,
                               threads);
    copy_tile<Shape::kColumns>(memory.q, in.q + from, in.H * in.K, p.tokens, in.K - first, thread,
                               threads);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
  }
  // P += Q K^T over a slab, in the order of the slabs; the last one gates P and T0.
  __device__ void add_scores(int slab) const {
#pragma unroll 1
    for (int index = warp_index(); index < kLowerBlocks; index += warp_count()) {
      const BlockIndex block(index);
      Accumulator p;
      if (slab > 0) {
        const OperandA<T> before = load_a(memory.P.block(index), 0, 0);
#pragma unroll
        for (int e = 0; e < 8; ++e) p[e] = value(before, e);
      }
      p = product_abt<Shape::kColumns>(memory.q, block.i, memory.k, block.j, p);
      if (slab + 1 < slabs())
        store(memory.P.block(index), 0, 0, p);
      else
        gate_block(memory.inverse, memory.P, block, p, *memory.gates, in.scale);
    }
  }
};

}  // namespace kla::KLA_BACKEND
