#include "commands/sweep_plan.h"

#include <algorithm>
#include <cstdio>

#include "commands/setup.h"
#include "core/thread_pool.h"
#include "model/model_cost.h"
#include "train/progress.h"
#include "train/trainer.h"

namespace kla {
namespace {

constexpr int kTimedSteps = 5;

std::string padded(std::string text, size_t width) {
  text.resize(std::max(text.size(), width), ' ');
  return text;
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

std::string settings_of(const SweepRun& run) {
  return run.settings.empty() ? "the base as it is" : joined(run.settings);
}

double flops_of(const SweepRun& run) {
  const Config& c = run.loaded.config;
  return count_cost(c.model, c.data.seq_len).training_flops_per_token;
}

std::string shell_quoted(const std::string& word) {
  std::string out = "'";
  for (char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

}  // namespace

StepTime measure_step_time(const SweepRun& run, int threads) {
  LoadedConfig loaded = run.loaded;
  loaded.config.device.threads = threads;
  const OpenData data = open_data(loaded);
  Trainer trainer(loaded.config, data.for_training());
  trainer.time_step();  // touches all memory for the first time
  std::vector<double> seconds;
  for (int i = 0; i < kTimedSteps; ++i) seconds.push_back(trainer.time_step());
  std::sort(seconds.begin(), seconds.end());
  return {.run = run.name,
          .threads = trainer.context().pool->threads(),
          .steps = kTimedSteps,
          .step_seconds = seconds[kTimedSteps / 2],
          .scoring_seconds = trainer.time_scoring(),
          .flops_per_token = flops_of(run),
          .validation_targets = data.val ? data.val->tokens() - 1 : 0};
}

double predict_seconds(const SweepRun& run, const RunStanding& standing, const StepTime& time) {
  if (standing.done()) return 0;
  const Config& c = run.loaded.config;
  const double scale = flops_of(run) / time.flops_per_token;
  const auto left = static_cast<double>(standing.steps - standing.step);
  const auto whole = static_cast<double>(time.validation_targets);
  const double partial =
      c.eval.max_tokens > 0 ? std::min(whole, static_cast<double>(c.eval.max_tokens)) : whole;
  const double tokens = left * static_cast<double>(c.train.global_batch_tokens);
  const double evaluations =
      c.eval.interval_tokens > 0 ? tokens / static_cast<double>(c.eval.interval_tokens) : 0;
  return scale *
         (left * time.step_seconds + time.scoring_seconds * (evaluations * partial + whole));
}

std::string plan_table(const Sweep& sweep, const std::vector<RunStanding>& standings,
                       const StepTime* time, int jobs) {
  size_t name_width = 3, settings_width = 8;
  for (const SweepRun& run : sweep.runs) {
    name_width = std::max(name_width, run.name.size());
    settings_width = std::max(settings_width, settings_of(run).size());
  }
  std::string table = padded("run", name_width) + "  " + padded("settings", settings_width) +
                      "   tokens    hours  state\n";
  double total = 0;
  for (size_t i = 0; i < sweep.runs.size(); ++i) {
    const SweepRun& run = sweep.runs[i];
    const double seconds = time ? predict_seconds(run, standings[i], *time) : 0;
    total += seconds;
    char numbers[64], hours[32] = "-";
    if (time) std::snprintf(hours, sizeof hours, "%.2f", seconds / 3600);
    std::snprintf(numbers, sizeof numbers, "  %7s  %7s  ",
                  format_count(static_cast<double>(run.loaded.config.train.max_tokens)).c_str(),
                  hours);
    table += padded(run.name, name_width) + "  " + padded(settings_of(run), settings_width) +
             numbers + describe(standings[i]) + "\n";
  }
  table += std::to_string(sweep.runs.size()) + " runs: " + std::to_string(sweep.variants.size()) +
           " variants, compared with " + sweep.config.baseline + "; in " + sweep.config.dir + "\n";
  if (!time) return table;
  char text[400];
  std::snprintf(text, sizeof text,
                "measured: %d steps of %s, median %.3f s a step, alone on %d threads; other "
                "variants scaled by their FLOPs\npredicted: %.2f h left with %d at a time (saves "
                "not counted; runs side by side share the memory, which this leaves out)\n",
                time->steps, time->run.c_str(), time->step_seconds, time->threads,
                total / 3600 / jobs, jobs);
  return table + text;
}

std::string slurm_script(const Sweep& sweep, int jobs) {
  const std::string& dir = sweep.config.dir;
  std::string script = "#!/bin/bash\n";
  script += "# Sweep " + sweep.config.name + ", " + std::to_string(sweep.runs.size()) +
            " runs, written by 'kla sweep run " + sweep.file + " --emit slurm'.\n";
  script += "# Submit it from the directory kla is started in. Adapt time, memory and partition.\n";
  script += "#SBATCH --job-name=" + sweep.config.name + "\n";
  script += "#SBATCH --array=0-" + std::to_string(sweep.runs.size() - 1) +
            (jobs > 1 ? "%" + std::to_string(jobs) : "") + "\n";
  script += "#SBATCH --output=" + dir + "/log/slurm-%A_%a.log\n";
  script += "#SBATCH --open-mode=append\n#SBATCH --requeue\n#SBATCH --signal=USR1@300\n";
  script += "#SBATCH --time=24:00:00\n\ncase $SLURM_ARRAY_TASK_ID in\n";
  for (size_t i = 0; i < sweep.runs.size(); ++i) {
    script += "  " + std::to_string(i) + ") words=(";
    const std::vector<std::string> words = train_words(sweep, sweep.runs[i], 0);
    for (size_t w = 0; w < words.size(); ++w) script += (w > 0 ? " " : "") + shell_quoted(words[w]);
    script += ") ;;\n";
  }
  script +=
      "  *) echo \"no run number $SLURM_ARRAY_TASK_ID\" >&2; exit 2 ;;\nesac\n\n"
      "srun \"${KLA:-kla}\" \"${words[@]}\"  # gets the signal itself, saves and ends with 75\n"
      "code=$?\n"
      "if [[ $code == 75 ]]; then\n"
      "  scontrol requeue \"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID\"\n"
      "fi\n"
      "exit $code\n";
  return script;
}

std::string sweep_record(const Sweep& sweep) {
  std::string text =
      "# Sweep of kla, format 1: the runs that were asked for. What became of them stands in their "
      "directories.\n";
  text += "name: " + sweep.config.name + "\nfile: \"" + sweep.file +
          "\"\nbaseline: " + sweep.config.baseline + "\nruns:\n";
  for (const SweepRun& run : sweep.runs)
    text += "  " + run.name + ":\n    variant: " + run.variant +
            "\n    seed: " + std::to_string(run.seed) + "\n";
  return text;
}

}  // namespace kla
