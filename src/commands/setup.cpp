#include "commands/setup.h"

#include <filesystem>

#include "config/freeze.h"
#include "core/file.h"

namespace kla {

void register_model_choices() {
  std::vector<Choice> rules;
  for (int i = 0; i < kRuleCount; ++i) {
    const RuleInfo& info = rule_info(i);
    rules.push_back({std::string(info.name), {}});
    if (!info.alias.empty()) rules.back().aliases.emplace_back(info.alias);
  }
  register_choices("model.step_size.rule", rules);
  register_choices("model.mixer", {{"gated_delta", {}}});
  std::vector<Choice> backends = {{"auto", {}}, {"cpu", {}}, {"cuda", {}}};
  if (available(Device::simt)) backends.push_back({"simt", {}});  // developer builds
  register_choices("device.backend", backends);
}

LoadedConfig load_run_config(const std::string& run, const std::vector<std::string>& overrides) {
  const std::string path = run + "/config.yaml";
  if (!file_exists(path))
    throw Error(Exit::usage, "'" + run + "' is not a run directory: it has no config.yaml",
                "name a directory that 'kla train' made, such as runs/quickstart/kla");
  LoadedConfig loaded = load_config(path, overrides);
  loaded.config.run.dir = run;  // it may have been moved
  return loaded;
}

std::string differing_keys(const Config& there, const Config& now) {
  std::string keys;
  for (const ConfigDifference& d : diff_configs(there, now))
    if (!d.safe) keys += "\n  " + d.path + ": " + d.before + " there, " + d.after + " now";
  return keys;
}

TrainData OpenData::for_training() const {
  return {.train = &*train, .val = val ? &*val : nullptr, .token_bytes = tokenizer->token_bytes()};
}

TokenDataset open_validation(const LoadedConfig& loaded) {
  const Config& c = loaded.config;
  return TokenDataset::open(c.data.val, c.model.vocab_size, Verify::payload);
}

Tokenizer open_tokenizer(const TokenDataset& data) {
  const auto prepared = std::filesystem::path(data.directory()).parent_path();
  Tokenizer tokenizer = Tokenizer::load((prepared / "tokenizer.model").string());
  data.require_tokenizer(tokenizer.sha256(), (prepared / "tokenizer.model").string());
  return tokenizer;
}

Tokenizer open_run_tokenizer(const Config& config, const std::string& sha256) {
  const auto prepared = std::filesystem::path(config.data.train).parent_path();
  Tokenizer tokenizer = Tokenizer::load((prepared / "tokenizer.model").string());
  if (tokenizer.sha256() != sha256)
    throw Error(Exit::data,
                "'" + (prepared / "tokenizer.model").string() +
                    "' is not the tokenizer this model was trained with",
                "restore the data directory that data.train names");
  return tokenizer;
}

LoadedModel::LoadedModel(const Config& config, const std::string& checkpoint,
                         const Allocate& allocate, const std::function<void()>& plan)
    : runtime(config.device), model(config.model) {
  const CheckpointStore store(config.run.dir + "/checkpoints");
  const std::optional<Checkpoint> found =
      checkpoint.empty() ? store.newest_valid() : store.find(checkpoint);
  if (!found)
    throw Error(Exit::data,
                "'" + config.run.dir + "' has no intact checkpoint" +
                    (checkpoint.empty() ? "" : " '" + checkpoint + "'"),
                "train it first, or name one of its checkpoints/step-*");
  runtime.set_up(
      [&] {
        weights = runtime.allocate_weights(model.parameters());
        allocate(runtime, model, weights);
      },
      plan);
  state = CheckpointStore::load_state(*found);
  HostMirror master(runtime.context, weights.master);
  CheckpointStore::load_model(*found, named_views(model.parameters(), master.host()));
  master.push();
  refresh_compute_copy(runtime.context, weights);
}

OpenData open_data(const LoadedConfig& loaded) {
  const Config& c = loaded.config;
  OpenData data;
  data.train = TokenDataset::open(c.data.train, c.model.vocab_size, Verify::payload);
  data.tokenizer = open_tokenizer(*data.train);
  if (!c.data.val.empty()) {
    data.val = open_validation(loaded);
    data.val->require_tokenizer(data.tokenizer->sha256(), c.data.train);
    if (data.val->identity() == data.train->identity())
      config_error(loaded, "data.val", "holds the same tokens as data.train",
                   "validate on text the model has not seen");
  }
  return data;
}

}  // namespace kla
