// Yardsticks of the machine for `kla bench`: what oneDNN's sgemm reaches on a product in one call
// with threads of its own, what our panels reach on the same, and how fast memory is copied.
#pragma once

#include <vector>

#include "core/context.h"
#include "kernels/op_cost.h"

namespace kla::cpu {

// Memory for the operands of the largest of some products, filled with small numbers.
struct SgemmOperands {
  SgemmOperands(Context&, const std::vector<Product>&);
  Arena memory;
  View a, b, c;
};

// Seconds of one product.
double time_sgemm(const SgemmOperands&, const Product&, int threads);
double time_panels(Context&, const SgemmOperands&, const Product&);

// Bytes read plus bytes written per second, all threads copying one half of `memory` to the other.
double copy_rate(Context&, const View& memory);

}  // namespace kla::cpu
