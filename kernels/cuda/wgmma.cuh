// Products of a warpgroup: wgmma, of compute capability 9.0 (sm_90a). Left operand and accumulators
// lie in registers, laid out as those of mma.sync (mma.cuh); the right operand in shared memory.
//
// A warpgroup is four consecutive warps, the first a multiple of four; each has 16 of its 64 rows.
// The products run behind its back: from warpgroup_begin() to warpgroup_wait() the accumulators
// belong to them. Shared memory they read must have been given over by share_with_tensor_cores() in
// every thread that wrote it, before a barrier.
//
// The twin is tests/simt/wgmma.h: there a product is computed when it is waited for, and its
// accumulators are NaN until then.
#pragma once

#ifdef KLA_SIMT
#include "tests/simt/wgmma.h"
#define KLA_HAS_WGMMA 1
#else

#include <cstdint>

#include "kernels/cuda/ptx.cuh"

// What is compiled for another architecture must not reach these.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)
#define KLA_HAS_WGMMA 1
#endif

namespace kla::cuda {

// A right operand in shared memory, cut into 8x8 cores of 128 bytes: eight rows of 16 bytes. Rows
// run along n and 16 bytes along k (kTransposed: the other way); `k_bytes` and `n_bytes` lead to
// the next core along k and n.
struct SharedOperand {
  uint32_t low, high;  // of the descriptor
  __device__ uint64_t bits() const { return uint64_t{high} << 32 | low; }
};
__device__ inline SharedOperand shared_operand(const void* first, int k_bytes, int n_bytes) {
  return {shared_address(first) >> 4 | static_cast<uint32_t>(k_bytes >> 4) << 16,
          static_cast<uint32_t>(n_bytes >> 4)};
}
__device__ inline SharedOperand advanced(SharedOperand operand, int bytes) {
  return {operand.low + static_cast<uint32_t>(bytes >> 4), operand.high};
}

#ifdef KLA_HAS_WGMMA

__device__ inline void share_with_tensor_cores() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}
__device__ inline void warpgroup_begin() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
__device__ inline void warpgroup_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Waits until at most `kPending` of the newest committed groups are under way.
template <int kPending>
__device__ inline void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}

// What the two forms of a product share: the accumulators, numbered from %0 on and bound from
// c[first] on, and the instruction, whose operands' numbers come behind those.
#define KLA_NUMBERS_1 "%0, %1, %2, %3, %4, %5, %6, %7"
#define KLA_NUMBERS_2 KLA_NUMBERS_1 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define KLA_NUMBERS_3 KLA_NUMBERS_2 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define KLA_NUMBERS_4 KLA_NUMBERS_3 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define KLA_NUMBERS_6      \
  KLA_NUMBERS_4            \
  ", %32, %33, %34, %35, " \
  "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define KLA_BLOCK(c)                                                                             \
  "+f"((c).x[0][0]), "+f"((c).x[0][1]), "+f"((c).x[0][2]), "+f"((c).x[0][3]), "+f"((c).x[1][0]), \
      "+f"((c).x[1][1]), "+f"((c).x[1][2]), "+f"((c).x[1][3])
#define KLA_BLOCKS_1 KLA_BLOCK(c[kFirst])
#define KLA_BLOCKS_2 KLA_BLOCKS_1, KLA_BLOCK(c[kFirst + 1])
#define KLA_BLOCKS_3 KLA_BLOCKS_2, KLA_BLOCK(c[kFirst + 2])
#define KLA_BLOCKS_4 KLA_BLOCKS_3, KLA_BLOCK(c[kFirst + 3])
#define KLA_BLOCKS_6 KLA_BLOCKS_4, KLA_BLOCK(c[kFirst + 4]), KLA_BLOCK(c[kFirst + 5])
#define KLA_PRODUCT(columns, numbers, add, operands)                                       \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " add                                                  \
  ", 0;\n"                                                                                 \
  "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32.bf16.bf16 {" numbers "}, " operands \
  ";\n}\n"

// c[kFirst .. kFirst + kCount) += a b, or = a b without kAdd: blocks of 16 rows of each warp and 16
// columns, as Accumulator (mma.cuh) holds them; a is the warp's m16n8k16 left operand.
template <int kFirst, int kCount, bool kTransposed, bool kAdd, class Block, int kAll>
__device__ __forceinline__ void warpgroup_multiply(Block (&c)[kAll], const uint32_t (&a)[4],
                                                   SharedOperand b) {
  static_assert(kFirst + kCount <= kAll && (kCount <= 4 || kCount == 6));
#define KLA_OPERANDS \
  "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.bits()), "n"(int{kAdd}), "n"(int{kTransposed})
  if constexpr (kCount == 1)
    asm volatile(KLA_PRODUCT("16", KLA_NUMBERS_1, "%13", "{%8, %9, %10, %11}, %12, p, 1, 1, %14")
                 : KLA_BLOCKS_1
                 : KLA_OPERANDS);
  if constexpr (kCount == 2)
    asm volatile(KLA_PRODUCT("32", KLA_NUMBERS_2, "%21", "{%16, %17, %18, %19}, %20, p, 1, 1, %22")
                 : KLA_BLOCKS_2
                 : KLA_OPERANDS);
  if constexpr (kCount == 3)
    asm volatile(KLA_PRODUCT("48", KLA_NUMBERS_3, "%29", "{%24, %25, %26, %27}, %28, p, 1, 1, %30")
                 : KLA_BLOCKS_3
                 : KLA_OPERANDS);
  if constexpr (kCount == 4)
    asm volatile(KLA_PRODUCT("64", KLA_NUMBERS_4, "%37", "{%32, %33, %34, %35}, %36, p, 1, 1, %38")
                 : KLA_BLOCKS_4
                 : KLA_OPERANDS);
  if constexpr (kCount == 6)
    asm volatile(KLA_PRODUCT("96", KLA_NUMBERS_6, "%53", "{%48, %49, %50, %51}, %52, p, 1, 1, %54")
                 : KLA_BLOCKS_6
                 : KLA_OPERANDS);
#undef KLA_OPERANDS
}

// The same with the left operand in shared memory: 64 rows along the cores' n.
template <int kCount, bool kTransposedA, bool kTransposedB, bool kAdd, class Block>
__device__ __forceinline__ void warpgroup_multiply(Block (&c)[kCount], SharedOperand a,
                                                   SharedOperand b) {
  static_assert(kCount == 4 || kCount == 6);
  constexpr int kFirst = 0;
#define KLA_OPERANDS \
  "l"(a.bits()), "l"(b.bits()), "n"(int{kAdd}), "n"(int{kTransposedA}), "n"(int{kTransposedB})
  if constexpr (kCount == 4)
    asm volatile(KLA_PRODUCT("64", KLA_NUMBERS_4, "%34", "%32, %33, p, 1, 1, %35, %36")
                 : KLA_BLOCKS_4
                 : KLA_OPERANDS);
  if constexpr (kCount == 6)
    asm volatile(KLA_PRODUCT("96", KLA_NUMBERS_6, "%50", "%48, %49, p, 1, 1, %51, %52")
                 : KLA_BLOCKS_6
                 : KLA_OPERANDS);
#undef KLA_OPERANDS
}

#else  // compiled for another architecture too, where a launch must fail, not compute nothing

__device__ inline void share_with_tensor_cores() {}
__device__ inline void warpgroup_begin() {
  __trap();
}
__device__ inline void warpgroup_commit() {}
template <int kPending>
__device__ inline void warpgroup_wait() {}
template <int kFirst, int kCount, bool kTransposed, bool kAdd, class Block, int kAll>
__device__ __forceinline__ void warpgroup_multiply(Block (&)[kAll], const uint32_t (&)[4],
                                                   SharedOperand) {}
template <int kCount, bool kTransposedA, bool kTransposedB, bool kAdd, class Block>
__device__ __forceinline__ void warpgroup_multiply(Block (&)[kCount], SharedOperand,
                                                   SharedOperand) {}

#endif  // KLA_HAS_WGMMA

}  // namespace kla::cuda

#endif
