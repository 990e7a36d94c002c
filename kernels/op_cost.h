// What a call of an op costs at least, counted from its shapes: floating-point operations of its
// matrix products (a triangle counts half) and bytes if every tensor moves once. `kla bench` sets
// measured times against it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/op.h"

namespace kla {

// One of the linear layers' products: y [m,n] = x w^T, dx [m,n] = dy w, or dw [m,n] += dy^T x; k is
// the length of the sums.
struct Product {
  enum class Form { forward, input, weight };
  Form form = Form::forward;
  int64_t m = 0, n = 0, k = 0;

  double flops() const {
    return 2 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  }
  auto operator<=>(const Product&) const = default;
};

// mixer: everything between the projections, the gated norm included.
enum class OpKind { product, mixer, elementwise, update };
const char* name_of(OpKind);

struct OpCost {
  OpKind kind = OpKind::elementwise;
  std::string shape;  // "4096x512", for the table
  double bytes = 0;
  double flops = 0;               // 0: memory sets the pace
  std::vector<Product> products;  // of kind product: what `flops` consists of
};

OpCost cost_of(const OpBase&, const void* args);

}  // namespace kla
