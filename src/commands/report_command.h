// `kla report RUN... | SWEEP [-o FILE] [--csv FILE] [--svg DIR]`: one HTML page about finished or
// running runs.
#pragma once

#include <string>
#include <vector>

namespace kla {

struct ReportOptions {
  std::vector<std::string> runs;  // run directories, or one sweep directory
  std::string output = "report.html";
  std::string csv;       // empty: none; of a sweep: its comparison
  std::string svg = {};  // directory for the figures; empty: none
};

// Returns an exit code. Error{usage|data|io}.
int run_report(const ReportOptions& options);

}  // namespace kla
