// kla train: config -> run directory -> data -> trainer -> checkpoints. The loop itself is
// train/trainer.cpp.
#include <cstdio>
#include <exception>
#include <optional>

#include "commands/arguments.h"
#include "commands/commands.h"
#include "commands/failure.h"
#include "commands/setup.h"
#include "config/freeze.h"
#include "core/clock.h"
#include "core/log.h"
#include "distributed/host_communicator.h"
#include "distributed/job.h"
#include "train/signals.h"
#include "train/trainer.h"
#include "version.h"

namespace kla {
namespace {

struct TrainArguments {
  std::string config, resume;
  std::vector<std::string> overrides;
  bool dry_run = false, quiet = false, verbose = false;
};

LoadedConfig load(const TrainArguments& a) {
  if (a.resume.empty()) return load_config(a.config, a.overrides);
  LoadedConfig loaded = load_run_config(a.resume, a.overrides);
  loaded.config.run.dir = a.resume;
  loaded.config.run.resume = "must";
  return loaded;
}

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
  trainer.state() = state;
}

// Everything that must be the same on all ranks before they take a step together.
std::vector<Fact> facts_of(const LoadedConfig& loaded, const OpenData& data) {
  std::vector<Fact> facts = {{"the program", KLA_VERSION " " KLA_GIT}};
  for (const auto& [path, value] : config_values(loaded.config))
    if (path != "device.threads") facts.push_back({path, value});
  const Device device = choose_device(loaded.config.device);
  facts.push_back({"the device", name_of(device)});
  facts.push_back({"the training set", data.train->identity(), Exit::data});
  facts.push_back({"the validation set", data.val ? data.val->identity() : "none", Exit::data});
  facts.push_back({"the tokenizer", data.train->tokenizer_sha256(), Exit::data});
  return facts;
}

// Before hours are spent on a rule under which the state can grow.
void warn_of_unstable_rule(const ModelConfig& model) {
  const RuleInfo& rule = rule_info(find_rule(model.step_size.rule));
  if (rule.stable()) return;
  log::warning("step-size rule " + std::string(rule.name) + ", beta = " +
               std::string(rule.equation) + ", can write with a gain beta |k|^2 above 2: " +
               "the state may grow until the run stops with exit code 5");
}

// Continues from the checkpoint that rank 0 has chosen; false if it has none.
bool continue_run(Trainer& trainer, const std::optional<Checkpoint>& from, Communicator& ranks) {
  if (from) restore(trainer, *from, TrainState(trainer.state()));
  const std::string state =
      ranks.from_root(from ? to_json(trainer.state()) : "", "the reading of the checkpoint");
  if (state.empty()) return false;
  trainer.push_tensors();
  trainer.state() = train_state_from_json(state, "rank 0");
  return true;
}

// Writes what pull_tensors() has brought to rank 0. Returns the checkpoint's path, or nothing if it
// failed and the run goes on.
std::string write_checkpoint(Trainer& trainer, const Config& config, const CheckpointStore& store,
                             MetricsWriter& metrics) {
  const auto start = Clock::now();
  const TrainState& state = trainer.state();
  std::string name;
  try {
    metrics.sync();  // rows the checkpoint stands for must not be lost behind it
    name =
        store.save(trainer.model_tensors(), trainer.optimizer_tensors(), state, config.checkpoint);
  } catch (const Error& e) {
    const bool last = state.step >= make_train_plan(config).steps || stop_requested();
    if (e.code() != Exit::io || config.checkpoint.on_error != "continue" || last) throw;
    log::warning(std::string(e.what()) + "; training goes on without this checkpoint");
    metrics.write(EventRow{state.step, "checkpoint_failed", e.what()});
    return "";
  }
  const double seconds = seconds_since(start);
  char text[64];
  std::snprintf(text, sizeof(text), " | %.2f s", seconds);
  log::info("ckpt " + name + text);
  return name;
}

RunIdentity identity_of(const Trainer& trainer, const CommandLine& command_line,
                        const Config& config, const TrainState& state, const OpenData& data,
                        int ranks) {
  return {.command_line = command_line,
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
          .threads = trainer.context().pool->threads(),
          .ranks = ranks};
}

// One rank's part of a run; `run` and the metrics of ranks other than 0 write nothing.
int train_in(const LoadedConfig& loaded, const CommandLine& command_line, RunDirectory& run,
             Communicator& ranks) {
  const Config& config = loaded.config;
  if (ranks.root()) {
    require_same_config(loaded, run);
    log::open_file(run.path() + "/log/rank0.log");
  }
  const OpenData data = open_data(loaded);
  require_same(ranks, facts_of(loaded, data));
  const CheckpointStore store(run.checkpoints());
  const std::optional<Checkpoint> from =
      ranks.root() ? choose_checkpoint(config, store) : std::nullopt;

  Trainer trainer(config, data.for_training(), false, ranks);
  TrainState& state = trainer.state();
  state.run_seed = config.run.seed;
  state.shuffle_seed = config.data.shuffle_seed;
  state.config_hash = config_hash(config);
  state.data_identity = data.train->identity();
  state.tokenizer_sha256 = data.train->tokenizer_sha256();
  const bool continued = continue_run(trainer, from, ranks);
  // Only now: a config that never started must not bind the run directory to its mistake.
  if (ranks.root() && !run.has_config()) run.write_config(freeze(loaded));

  log::info(trainer.describe());
  warn_of_unstable_rule(config.model);
  log::info("run         " + run.path() +
            (continued ? ", continued from step " + std::to_string(state.step) : ""));
  run.record_start(identity_of(trainer, command_line, config, state, data, ranks.size()),
                   state.step);
  MetricsWriter metrics =
      ranks.root() ? MetricsWriter(run.path(), state.step, config.log.csv) : MetricsWriter();
  metrics.write(EventRow{state.step, from ? "resume" : "start", from ? from->path : ""});

  auto save = [&] {
    trainer.pull_tensors();
    const Patience patience(ranks.channel(), static_cast<double>(config.dist.save_timeout_s));
    return ranks.from_root(ranks.root() ? write_checkpoint(trainer, config, store, metrics) : "",
                           "the writing of a checkpoint");
  };
  const Trainer::Outcome outcome = trainer.run(metrics, run, save);
  const bool stopped = outcome == Trainer::Outcome::stopped;
  const std::string signal = *stop_signal_name() ? stop_signal_name() : "a signal to another rank";
  metrics.write(EventRow{state.step, stopped ? "stop" : "finished", stopped ? signal : ""});
  trainer.write_status(run, stopped ? "stopped" : "finished");
  const Exit code = stopped ? Exit::stopped : Exit::ok;
  run.record_end(static_cast<int>(code), state.step);
  log::status_line("");
  log::info(stopped ? "stopped by " + signal + " at step " + std::to_string(state.step) +
                          "; continue with 'kla train --resume " + run.path() + "'"
                    : "finished: " + run.path());
  ranks.barrier("the end of the run");  // a launcher may kill the others once one has ended
  return static_cast<int>(code);
}

int train_as_rank(const LoadedConfig& loaded, const CommandLine& command_line, Channel& channel) {
  RunDirectory run =
      channel.rank() == 0 ? RunDirectory::open(loaded.config.run.dir) : RunDirectory();
  try {
    const auto ranks = make_communicator(channel, choose_device(loaded.config.device));
    return train_in(loaded, command_line, run, *ranks);
  } catch (const Error& e) {
    run.record_failure(static_cast<int>(e.code()), e.what());
    throw;
  }
}

void print_plan(const Config& config, const Launch& launch) {
  const auto channel = plan_channel(launch);
  HostCommunicator ranks(*channel, services_of(Device::cpu));
  std::printf("%s\n", Trainer(config, TrainData{}, true, ranks).describe().c_str());
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
  const Launch launch = detect_launch();
  log::set_terminal_level(launch.rank > 0 ? log::Level::error
                          : a.quiet       ? log::Level::warning
                          : a.verbose     ? log::Level::debug
                                          : log::Level::info);
  if (launch.size > 1) log::set_plain();
  use_device(launch.local_rank);
  register_model_choices();
  if (a.dry_run) {
    if (launch.rank == 0) print_plan(load(a).config, launch);
    return 0;
  }

  const SignalGuard signals(launch.rank == 0);
  // A config with mistakes has them on every rank; they meet before one of them reports it.
  LoadedConfig loaded;
  std::exception_ptr mistake;
  try {
    loaded = load(a);
  } catch (const Error&) {
    if (launch.size == 1) throw;
    mistake = std::current_exception();
  }
  const auto channel = open_channel(launch, static_cast<double>(loaded.config.dist.init_timeout_s));
  const auto work = [&] {
    if (mistake) std::rethrow_exception(mistake);
    return train_as_rank(loaded, command_line, *channel);
  };
  return run_job(*channel, work, print_failure);
}

}  // namespace kla
