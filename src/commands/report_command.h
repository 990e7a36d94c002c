// `kla report RUN... [-o FILE] [--csv FILE]`: one HTML page about finished or running runs.
#pragma once

#include <string>
#include <vector>

namespace kla {

struct ReportOptions {
  std::vector<std::string> runs;  // run directories
  std::string output = "report.html";
  std::string csv;  // empty: none
};

// Returns an exit code. Error{usage|data|io}.
int run_report(const ReportOptions& options);

}  // namespace kla
