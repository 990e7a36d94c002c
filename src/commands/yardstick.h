// Yardsticks: what a device reaches at best on the very products of a step, and when it copies
// memory. `kla bench` sets measured times against them; `kla doctor` prints them.
#pragma once

#include <memory>
#include <vector>

#include "core/context.h"
#include "kernels/op_cost.h"

namespace kla {

// FLOP/s of one product, best of all turns.
struct ProductTiming {
  Product product;     // as timed; fewer tokens than in the step if it would not fit
  double flops = 0;    // of a step
  double library = 0;  // one call: oneDNN with its own threads, or cuBLASLt
  double ours = 0;     // our panels of oneDNN calls; 0 where the op is the library's call
  double best() const { return library > ours ? library : ours; }
};

class Yardstick {
 public:
  virtual ~Yardstick() = default;
  virtual const char* library() const = 0;      // "oneDNN"
  virtual void time(ProductTiming&) const = 0;  // one more turn
  virtual double copy_rate() const = 0;         // bytes read plus bytes written a second, one turn
};

// For these products on the context's device, with operands in memory of its own (random numbers:
// zeros run faster than real data). The context must outlive it.
std::unique_ptr<Yardstick> make_yardstick(Context&, const std::vector<Product>&);

// A product as it is timed: fewer tokens if an operand had more elements than may be allocated.
Product affordable(Product, int64_t elements);
int64_t affordable_elements(Device);  // of an operand, with what is free now

}  // namespace kla
