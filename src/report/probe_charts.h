// Figures of what metrics/probes.jsonl holds: one for each quantity inside the mixers, a panel for
// each layer, quantile bands over training.
#pragma once

#include <string>
#include <vector>

#include "report/charts.h"

namespace kla::report {

// Nothing if no run was probed. Drawn is the first probed run of each variant, up to three.
std::vector<Figure> probe_figures(const std::vector<RunData>& runs, const Summary& summary);

// Which line is which run and what the bands are, as markup.
std::string probe_legend(const std::vector<RunData>& runs, const Summary& summary);

}  // namespace kla::report
