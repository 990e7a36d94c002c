// Yardsticks of the machine for `kla bench`: what oneDNN's sgemm reaches on a product in one call
// with threads of its own, what our panels reach on the same, and how fast memory is copied.
#pragma once

#include <string>
#include <vector>

#include "core/context.h"
#include "kernels/op_cost.h"

namespace kla::cpu {

// Memory for the operands of the largest of some products, and for copying, filled with small
// numbers.
struct Yardstick {
  Yardstick(Context&, const std::vector<Product>&);
  Arena memory;
  View a, b, c;
  View from, to;
};

// Seconds of one product.
double time_sgemm(const Yardstick&, const Product&, int threads);
double time_panels(Context&, const Yardstick&, const Product&);

// Bytes read plus bytes written per second, by all threads.
double copy_rate(Context&, const Yardstick&);

// "oneDNN 2.6.3 (avx512_core_vnni)", "Highway (AVX3)": versions, and the instructions they chose.
std::vector<std::string> library_versions();

}  // namespace kla::cpu
