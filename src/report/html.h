// The report page: one static HTML file with inline SVG, no scripts, nothing from elsewhere.
#pragma once

#include <string>
#include <vector>

#include "report/run_reader.h"

namespace kla::report {

// The same runs give the same bytes: nothing but the run directories enters the page.
std::string render_report(const std::vector<RunData>& runs);

}  // namespace kla::report
