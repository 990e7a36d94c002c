#include "commands/report_command.h"

#include "commands/arguments.h"
#include "commands/commands.h"
#include "core/error.h"
#include "core/file.h"
#include "core/log.h"
#include "report/comparison.h"
#include "report/html.h"
#include "report/run_reader.h"
#include "report/summary.h"
#include "report/sweep_reader.h"

namespace kla {

namespace {

report::SweepData read_subject(const std::vector<std::string>& directories) {
  if (directories.size() == 1 && report::is_sweep(directories[0]))
    return report::read_sweep(directories[0]);
  report::SweepData subject;
  for (const std::string& directory : directories) {
    if (report::is_sweep(directory))
      throw Error(Exit::usage, "'" + directory + "' is a sweep; a report is about one of them",
                  "give it alone, or name run directories");
    subject.runs.push_back(report::read_run(directory));
  }
  return subject;
}

void export_figures(const std::vector<report::Figure>& figures, const std::string& directory) {
  make_directories(directory);
  for (size_t i = 0; i < figures.size(); ++i) {
    const std::string name =
        figures[i].name.empty() ? "figure_" + std::to_string(i + 1) : figures[i].name;
    write_file_atomic(directory + "/" + name + ".svg", report::standalone_svg(figures[i]));
  }
  log::info("wrote " + std::to_string(figures.size()) + " figures to " + directory);
}

}  // namespace

int run_report(const ReportOptions& options) {
  const report::SweepData subject = read_subject(options.runs);
  const report::Page page = report::render_page(subject);
  write_file_atomic(options.output, page.html);
  log::info("wrote " + options.output);
  if (!options.csv.empty()) {
    write_file_atomic(options.csv, subject.name.empty()
                                       ? report::to_csv(report::summarize(subject.runs))
                                       : report::to_csv(report::compare_sweep(subject)));
    log::info("wrote " + options.csv);
  }
  if (!options.svg.empty()) export_figures(page.figures, options.svg);
  return 0;
}

int report_command(const CommandLine& words) {
  ReportOptions options;
  Arguments arguments("report",
                      "One HTML page about runs, or about a sweep: tables, verdicts, "
                      "curves, configs.",
                      "kla report runs/quickstart/kla runs/quickstart/gdn -o report.html\n"
                      "  kla report runs/step_size_cpu --svg experiments/figures");
  arguments.positionals("RUN", options.runs, "run directories, or one sweep directory", true);
  arguments.option("-o,--output", options.output, "the page");
  arguments.option("--csv", options.csv,
                   "also the table: a row for each run and context length, of a sweep a row for "
                   "each variant");
  arguments.option("--svg", options.svg,
                   "also every figure as a file of its own, in this directory");
  return arguments.parse(words) ? run_report(options) : 0;
}

}  // namespace kla
