// The figures of a comparison over seeds.
#pragma once

#include <vector>

#include "report/charts.h"
#include "report/comparison.h"

namespace kla::report {

// The paired differences as a forest plot, with published ones beside them, and how they came about
// during the training; none without any difference.
std::vector<Figure> comparison_figures(const std::vector<RunData>& runs, const Summary& summary,
                                       const Comparison& comparison,
                                       const std::vector<Reference>& references);

}  // namespace kla::report
