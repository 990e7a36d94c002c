// The report page: one static HTML file with inline SVG, no scripts, nothing from elsewhere.
#pragma once

#include <string>
#include <vector>

#include "report/charts.h"
#include "report/run_reader.h"
#include "report/sweep_reader.h"

namespace kla::report {

struct Page {
  std::string html;
  std::vector<Figure> figures;  // all of them, in their order
};

// The same runs give the same bytes: nothing but the run directories enters the page.
Page render_page(const SweepData& subject);
std::string render_report(const std::vector<RunData>& runs);

// A figure as an SVG file of its own, with the style that the page gives it.
std::string standalone_svg(const Figure& figure);

}  // namespace kla::report
