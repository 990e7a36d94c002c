// The scans of the delta rule on warpgroups (delta_scan_wgmma.cu): bf16, K of 64 to 96, V a
// multiple of 64, compute capability 9.0.
#pragma once

#include "kernels/cuda/runtime.h"
#include "kernels/ops.h"

namespace kla::KLA_BACKEND {

// Whether the current device and these shapes are for the two below; T is the compute type.
bool scans_on_warpgroups(const Context& context, int64_t K, int64_t V);

void delta_scan_forward_wgmma(Context& context, const DeltaScanForward& a);
void delta_reverse_scan_wgmma(Context& context, const DeltaReverseScan& a);

}  // namespace kla::KLA_BACKEND
