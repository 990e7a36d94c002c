// The twins of kernels/cuda/ptx.cuh, which states what each does and who holds which element.
// cp.async is modelled at its latest: the destination turns NaN when the copy is asked for and is
// filled when this thread waits for it, so a missing commit, wait or barrier shows.
#pragma once

#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "tests/simt/warp.h"

namespace kla::simt {

void cp_async_16(void* shared, const void* global, bool valid, KLA_SIMT_PLACE);
inline void cp_async_16_if(bool wanted, void* shared, const void* global, bool valid,
                           KLA_SIMT_PLACE) {
  if (wanted) cp_async_16(shared, global, valid, place);
}
void cp_async_commit(KLA_SIMT_PLACE);
void cp_async_wait_pending(int pending, const fibers::Site&);
template <int kPending>
void cp_async_wait(KLA_SIMT_PLACE) {
  cp_async_wait_pending(kPending, {"cp_async_wait", place});
}

// Each lane's row is read when that lane arrives: rows that other lanes write need a __syncwarp()
// before, as on the device.
void ldmatrix_x4(uint32_t (&r)[4], const void* row, KLA_SIMT_PLACE);
void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, KLA_SIMT_PLACE);
void ldmatrix_x2(uint32_t (&r)[2], const void* row, KLA_SIMT_PLACE);
void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, KLA_SIMT_PLACE);

uint32_t movmatrix_trans(uint32_t a, KLA_SIMT_PLACE);

// Each element sums its products in f32 in the order of k, starting from c.
void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], KLA_SIMT_PLACE);
void mma_m16n8k8(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], KLA_SIMT_PLACE);

inline int thread_index() {
  return static_cast<int>(threadIdx.x);
}

uint32_t to_tf32(float x);
float exp2_fast(float x);
float reciprocal_fast(float x);

}  // namespace kla::simt
