// What a model costs beside its parameters, counted from the config: the size of its recurrent
// state and the arithmetic of training on one token.
#pragma once

#include <cstdint>

#include "config/config.h"

namespace kla {

struct ModelCost {
  int64_t state_values = 0;  // L H K V: the matrices S of all layers, for one sequence
  // Floating-point operations of the matrix products of forward and backward, per token of a
  // sequence of T: every op counted from its shapes (op_cost.h), a triangle of a chunk half.
  double training_flops_per_token = 0;
};

ModelCost count_cost(const ModelConfig&, int64_t T);

}  // namespace kla
