// What `kla check` says about the layers it compared.
#pragma once

#include <vector>

#include "eval/mixer_check.h"

namespace kla {

// Prints a line for each layer, its errors beside their bounds. Error{numerical} if any is
// exceeded.
void report_check(const std::vector<LayerCheck>& layers, const CheckBounds& bounds);

}  // namespace kla
