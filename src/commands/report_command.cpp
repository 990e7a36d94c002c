#include "commands/report_command.h"

#include "commands/arguments.h"
#include "commands/commands.h"
#include "core/file.h"
#include "core/log.h"
#include "report/html.h"
#include "report/run_reader.h"
#include "report/summary.h"

namespace kla {

int run_report(const ReportOptions& options) {
  std::vector<report::RunData> runs;
  for (const std::string& directory : options.runs) runs.push_back(report::read_run(directory));
  write_file_atomic(options.output, report::render_report(runs));
  log::info("wrote " + options.output);
  if (!options.csv.empty()) {
    write_file_atomic(options.csv, report::to_csv(report::summarize(runs)));
    log::info("wrote " + options.csv);
  }
  return 0;
}

int report_command(const CommandLine& words) {
  ReportOptions options;
  Arguments arguments("report", "One HTML page about one or more runs: table, curves, configs.",
                      "kla report runs/quickstart/kla runs/quickstart/gdn -o report.html");
  arguments.positionals("RUN", options.runs, "run directories", true);
  arguments.option("-o,--output", options.output, "the page");
  arguments.option("--csv", options.csv, "also the table, one row a run and context length");
  return arguments.parse(words) ? run_report(options) : 0;
}

}  // namespace kla
