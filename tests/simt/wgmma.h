// The twins of kernels/cuda/wgmma.cuh. Modelled at their latest: a product reads shared memory and
// gives its accumulators back when it is waited for; until then they are NaN. That shared memory is
// given over to the tensor cores is not checked.
#pragma once

#include <cstdint>

#include "tests/simt/ptx.h"

namespace kla::simt {

using fibers::SharedOperand;
inline SharedOperand shared_operand(const void* first, int k_bytes, int n_bytes) {
  return {static_cast<const unsigned char*>(first), k_bytes, n_bytes};
}
inline SharedOperand advanced(SharedOperand operand, int bytes) {
  operand.first += bytes;
  return operand;
}

inline void share_with_tensor_cores() {}
inline void warpgroup_begin() {}
void warpgroup_commit(KLA_SIMT_PLACE);
void warpgroup_wait_pending(int pending, const fibers::Site&);
template <int kPending>
void warpgroup_wait(KLA_SIMT_PLACE) {
  warpgroup_wait_pending(kPending, {"warpgroup_wait", place});
}

// `c` points to `blocks` blocks of 8 accumulators; one of the left operands is given.
void warpgroup_product(float* c, int blocks, bool add, const uint32_t (*a)[4],
                       const fibers::CoreMatrix& shared_a, const fibers::CoreMatrix& b,
                       const fibers::Site&);
template <int kFirst, int kCount, bool kTransposed, bool kAdd, class Block, int kAll>
void warpgroup_multiply(Block (&c)[kAll], const uint32_t (&a)[4], SharedOperand b, KLA_SIMT_PLACE) {
  static_assert(kFirst + kCount <= kAll && sizeof(Block) == 8 * sizeof(float));
  warpgroup_product(&c[kFirst].x[0][0], kCount, kAdd, &a, {}, {b, kTransposed},
                    {"warpgroup_multiply", place});
}
template <int kCount, bool kTransposedA, bool kTransposedB, bool kAdd, class Block>
void warpgroup_multiply(Block (&c)[kCount], SharedOperand a, SharedOperand b, KLA_SIMT_PLACE) {
  static_assert(sizeof(Block) == 8 * sizeof(float));
  warpgroup_product(&c[0].x[0][0], kCount, kAdd, nullptr, {a, kTransposedA}, {b, kTransposedB},
                    {"warpgroup_multiply", place});
}

}  // namespace kla::simt
