// The figures of the page, built from runs and their summary.
#pragma once

#include <string>
#include <vector>

#include "report/run_reader.h"
#include "report/summary.h"

namespace kla::report {

struct Figure {
  std::string svg;
  std::string caption;    // plain text: what is drawn, from how many values
  std::string name = {};  // of its file, if it is exported: "training_loss"
};

// In the order of the page; a figure without data is left out.
std::vector<Figure> training_figures(const std::vector<RunData>& runs, const Summary& summary);
std::vector<Figure> validation_figures(const std::vector<RunData>& runs, const Summary& summary);
std::vector<Figure> optimizer_figures(const std::vector<RunData>& runs, const Summary& summary);

}  // namespace kla::report
