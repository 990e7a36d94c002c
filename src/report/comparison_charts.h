// The figures of a comparison over seeds.
#pragma once

#include <vector>

#include "report/charts.h"
#include "report/comparison.h"

namespace kla::report {

// The paired differences as a forest plot, with published ones beside them; none without any
// difference.
std::vector<Figure> comparison_figures(const Summary& summary, const Comparison& comparison,
                                       const std::vector<Reference>& references);

}  // namespace kla::report
