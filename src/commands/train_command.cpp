// kla train: config -> run directory -> data -> trainer -> checkpoints. The loop itself is
// train/trainer.cpp.
#include <cstdio>
#include <optional>

#include "commands/arguments.h"
#include "commands/commands.h"
#include "commands/setup.h"
#include "config/freeze.h"
#include "core/log.h"
#include "train/signals.h"
#include "train/trainer.h"

namespace kla {
namespace {

struct TrainArguments {
  std::string config, resume;
  std::vector<std::string> overrides;
  bool dry_run = false, quiet = false, verbose = false;
};

// A run directory that exists is continued if its frozen config says the same, and refused
// otherwise.
void require_same_config(const LoadedConfig& loaded, const RunDirectory& run) {
  if (!run.has_config()) return;
  const LoadedConfig frozen = load_run_config(run.path());
  const std::string keys = differing_keys(frozen.config, loaded.config);
  if (!keys.empty())
    throw Error(
        Exit::usage, "run directory '" + run.path() + "' was started with another config:" + keys,
        "give this run another run.name, or continue the old one with 'kla train --resume " +
            run.path() + "'");
}

// The newest intact checkpoint, as run.resume allows. Error{data} rather than a silent fresh start.
std::optional<Checkpoint> choose_checkpoint(const Config& config, const CheckpointStore& store) {
  store.remove_leftovers();
  if (config.run.resume == "never") {
    if (store.ever_held_one())
      throw Error(Exit::usage, "run.resume is 'never', but the run has checkpoints",
                  "give this run another run.name");
    return std::nullopt;
  }
  const std::optional<Checkpoint> found = store.newest_valid();
  if (!found && store.ever_held_one())
    throw Error(Exit::data, "the run has saved checkpoints, but none of them is intact",
                "restore one, or give this run another run.name to start anew");
  if (!found && config.run.resume == "must")
    throw Error(Exit::data, "run.resume is 'must', but there is no checkpoint",
                "set run.resume=auto to start from the beginning");
  return found;
}

void restore(Trainer& trainer, const Checkpoint& checkpoint, const TrainState& expected) {
  const TrainState state = CheckpointStore::load_state(checkpoint);
  auto require = [&](bool equal, const char* what) {
    if (!equal)
      throw Error(Exit::data, "'" + checkpoint.path + "' was trained with another " + what,
                  "restore the original, or give this run another run.name");
  };
  require(state.config_hash == expected.config_hash, "config");
  require(state.tokenizer_sha256 == expected.tokenizer_sha256, "tokenizer");
  require(state.data_identity == expected.data_identity, "training set");
  CheckpointStore::load_model(checkpoint, trainer.model_tensors());
  CheckpointStore::load_optimizer(checkpoint, trainer.optimizer_tensors());
  trainer.push_tensors();
  trainer.state() = state;
}

// Before hours are spent on a rule under which the state can grow.
void warn_of_unstable_rule(const ModelConfig& model) {
  const RuleInfo& rule = rule_info(find_rule(model.step_size.rule));
  if (rule.stable()) return;
  log::warning("step-size rule " + std::string(rule.name) + ", beta = " +
               std::string(rule.equation) + ", can write with a gain beta |k|^2 above 2: " +
               "the state may grow until the run stops with exit code 5");
}

int train_in(const LoadedConfig& loaded, const CommandLine& command_line, RunDirectory& run) {
  const Config& config = loaded.config;
  require_same_config(loaded, run);
  log::open_file(run.path() + "/log/rank0.log");
  const OpenData data = open_data(loaded);
  const CheckpointStore store(run.checkpoints());
  const std::optional<Checkpoint> from = choose_checkpoint(config, store);

  Trainer trainer(config, data.for_training());
  TrainState& state = trainer.state();
  state.run_seed = config.run.seed;
  state.shuffle_seed = config.data.shuffle_seed;
  state.config_hash = config_hash(config);
  state.data_identity = data.train->identity();
  state.tokenizer_sha256 = data.train->tokenizer_sha256();
  if (from) restore(trainer, *from, TrainState(state));
  // Only now: a config that never started must not bind the run directory to its mistake.
  if (!run.has_config()) run.write_config(freeze(loaded));

  log::info(trainer.describe());
  warn_of_unstable_rule(config.model);
  log::info("run         " + run.path() +
            (from ? ", continued from step " + std::to_string(state.step) : ""));
  run.record_start({.command_line = command_line,
                    .config_hash = state.config_hash,
                    .tokenizer_sha256 = state.tokenizer_sha256,
                    .train_identity = state.data_identity,
                    .val_identity = data.val ? data.val->identity() : "",
                    .run_seed = config.run.seed,
                    .shuffle_seed = config.data.shuffle_seed,
                    .parameters = trainer.model().parameters().count(),
                    .embedding_parameters = trainer.model().embedding_count(),
                    .cost = count_cost(config.model, config.data.seq_len),
                    .device = name_of(trainer.context().device),
                    .threads = trainer.context().pool->threads()},
                   state.step);
  MetricsWriter metrics(run.path(), state.step, config.log.csv);
  metrics.write(EventRow{state.step, from ? "resume" : "start", from ? from->path : ""});

  auto save = [&]() -> std::string {
    const auto start = Stopwatch::Clock::now();
    std::string name;
    try {
      metrics.sync();  // rows the checkpoint stands for must not be lost behind it
      trainer.pull_tensors();
      name = store.save(trainer.model_tensors(), trainer.optimizer_tensors(), state,
                        config.checkpoint);
    } catch (const Error& e) {
      const bool last = state.step >= make_train_plan(config).steps || stop_requested();
      if (e.code() != Exit::io || config.checkpoint.on_error != "continue" || last) throw;
      log::warning(std::string(e.what()) + "; training goes on without this checkpoint");
      metrics.write(EventRow{state.step, "checkpoint_failed", e.what()});
      return "";
    }
    const double seconds = std::chrono::duration<double>(Stopwatch::Clock::now() - start).count();
    char text[64];
    std::snprintf(text, sizeof(text), " | %.2f s", seconds);
    log::info("ckpt " + name + text);
    return name;
  };
  const Trainer::Outcome outcome = trainer.run(metrics, run, save);
  const bool stopped = outcome == Trainer::Outcome::stopped;
  metrics.write(EventRow{state.step, stopped ? "stop" : "finished", stop_signal_name()});
  trainer.write_status(run, stopped ? "stopped" : "finished");
  const Exit code = stopped ? Exit::stopped : Exit::ok;
  run.record_end(static_cast<int>(code), state.step);
  log::status_line("");
  log::info(stopped ? std::string("stopped by ") + stop_signal_name() + " at step " +
                          std::to_string(state.step) + "; continue with 'kla train --resume " +
                          run.path() + "'"
                    : "finished: " + run.path());
  return static_cast<int>(code);
}

}  // namespace

int train_command(const CommandLine& command_line) {
  TrainArguments a;
  Arguments arguments("train", "Trains a model from a config, or continues a run.",
                      "kla train configs/quickstart/kla.yaml optim.lr=2e-3 run.name=trial\n"
                      "  kla train --resume runs/quickstart/kla");
  arguments.positional("config", a.config, "YAML config; key=value words after it override", false);
  arguments.option("--resume", a.resume, "run directory to continue, with its own frozen config");
  arguments.flag("--dry-run", a.dry_run,
                 "print the memory plan and the number of steps, do nothing");
  arguments.flag("-q,--quiet", a.quiet, "warnings and errors only");
  arguments.flag("-v,--verbose", a.verbose, "more detail");
  arguments.overrides(a.overrides);
  if (!arguments.parse(command_line)) return 0;
  if (a.config.empty() == a.resume.empty())
    throw Error(Exit::usage, "give either a config or --resume RUN", "see 'kla train --help'");
  log::set_terminal_level(a.quiet     ? log::Level::warning
                          : a.verbose ? log::Level::debug
                                      : log::Level::info);
  register_model_choices();
  const bool resume = !a.resume.empty();
  LoadedConfig loaded =
      resume ? load_run_config(a.resume, a.overrides) : load_config(a.config, a.overrides);
  if (resume) {
    loaded.config.run.dir = a.resume;
    loaded.config.run.resume = "must";
  }
  if (a.dry_run) {
    std::printf("%s\n", Trainer(loaded.config, TrainData{}, true).describe().c_str());
    return 0;
  }

  SignalGuard signals;
  RunDirectory run = RunDirectory::open(loaded.config.run.dir);
  try {
    return train_in(loaded, command_line, run);
  } catch (const Error& e) {
    run.record_failure(static_cast<int>(e.code()), e.what());
    throw;
  }
}

}  // namespace kla
