// The chunk backward of the delta rule on warpgroups (delta_chunk_backward_wgmma.cu): bf16, K of 64
// to 96, V a multiple of 64, compute capability 9.0.
#pragma once

#include "kernels/ops.h"

namespace kla::KLA_BACKEND {

// Whether the current device and these shapes are for it.
bool chunk_backward_on_warpgroups(const Context& context, int64_t K, int64_t V);

void delta_chunk_backward_wgmma(Context& context, const DeltaChunkBackward& a);

}  // namespace kla::KLA_BACKEND
