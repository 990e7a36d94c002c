// kla sweep: one base config, variants of it, seeds. `plan` says what it will be, `run` does it.
#include <cstdio>

#include "commands/arguments.h"
#include "commands/commands.h"
#include "commands/setup.h"
#include "commands/sweep_plan.h"
#include "commands/sweep_runs.h"
#include "core/error.h"
#include "core/file.h"
#include "core/log.h"
#include "core/thread_pool.h"
#include "report/comparison.h"
#include "report/sweep_reader.h"
#include "train/run_directory.h"
#include "train/signals.h"

namespace kla {
namespace {

int plan(const Sweep& sweep, int jobs, bool timed) {
  const std::vector<RunStanding> standings = standings_of(sweep);
  StepTime time;
  if (timed) time = measure_step_time(sweep.runs.front(), std::max(1, available_cores() / jobs));
  const std::string table = plan_table(sweep, standings, timed ? &time : nullptr, jobs);
  std::fputs(table.c_str(), stdout);
  return 0;
}

// What the report needs beside the run directories. Rewritten at every start: a sweep may grow.
void write_record(const Sweep& sweep) {
  write_file_atomic(sweep.config.dir + "/" + report::kSweepRecord, sweep_record(sweep));
  if (!sweep.config.references.empty())
    write_file_atomic(sweep.config.dir + "/" + report::kReferences,
                      read_file(sweep.config.references, 1 << 20));
}

int run(const Sweep& sweep, int jobs) {
  make_directories(sweep.config.dir);
  SignalGuard signals;
  const File lock = lock_directory(sweep.config.dir, "sweep directory",
                                   "wait for it or stop it; a sweep is run by one process");
  standings_of(sweep);  // refuses a directory of another config before anything is written
  write_record(sweep);
  const int code = execute(sweep, jobs);
  if (code == static_cast<int>(Exit::stopped)) {
    log::info("stopped; the same command continues every run where it was saved");
    return code;
  }
  const report::SweepData data = report::read_sweep(sweep.config.dir);
  log::info("\n" + report::to_text(report::compare_sweep(data)));
  return code;
}

int emit_slurm(const Sweep& sweep, int jobs) {
  make_directories(sweep.config.dir + "/log");
  write_record(sweep);
  std::fputs(slurm_script(sweep, jobs).c_str(), stdout);
  return 0;
}

}  // namespace

int sweep_command(const CommandLine& line) {
  const bool planning = !line.empty() && line[0] == "plan";
  const bool verb = planning || (!line.empty() && line[0] == "run");
  std::string file, emit;
  int64_t jobs = 1;
  bool untimed = false;
  Arguments arguments(planning ? "sweep plan" : "sweep run",
                      planning ? "Prints the runs of a sweep, where each stands and, from a "
                                 "measured step time, the hours they need. Writes nothing."
                               : "Runs what is not done yet of a sweep: variants x seeds. "
                                 "Interrupted runs continue, finished ones are skipped. ('kla "
                                 "sweep plan FILE' shows what it will be.)",
                      planning ? "kla sweep plan configs/ablations/step_size_cpu.yaml --jobs 2"
                               : "kla sweep run configs/ablations/step_size_cpu.yaml --jobs 2\n"
                                 "  kla sweep run FILE --emit slurm > sweep.sbatch");
  arguments.positional("file", file, "sweep file", true);
  arguments.option("--jobs", jobs, "runs at a time; each gets its share of the cores");
  if (planning)
    arguments.flag("--no-timing", untimed, "do not measure: no data needed, no hours");
  else
    arguments.option("--emit", emit, "slurm: print an array job instead of running");
  if (!arguments.parse(verb ? CommandLine(line.begin() + 1, line.end()) : line)) return 0;
  if (jobs < 1 || jobs > 1024)
    throw Error(Exit::usage, "--jobs: at least 1, at most 1024", "give the number of runs at once");
  if (!emit.empty() && emit != "slurm")
    throw Error(Exit::usage, "--emit " + emit + " does not exist", "choose slurm");
  register_model_choices();
  const Sweep sweep = load_sweep(file);
  const int count = static_cast<int>(jobs);
  if (planning) return plan(sweep, count, !untimed);
  return emit.empty() ? run(sweep, count) : emit_slurm(sweep, count);
}

}  // namespace kla
