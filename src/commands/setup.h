// What several commands need: the choices that the model layer adds to the config, the config of a
// run, and the data a config names, opened and checked against each other.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "config/load.h"
#include "data/dataset.h"
#include "data/tokenizer.h"
#include "train/trainer.h"

namespace kla {

// Rule and mixer names for the config. Before any config is loaded.
void register_model_choices();

// The frozen config of a run directory. Error{usage} if it is none.
LoadedConfig load_run_config(const std::string& run,
                             const std::vector<std::string>& overrides = {});

// "\n  KEY: A there, B now" for every key that decides the result of a run and differs; "" if none.
std::string differing_keys(const Config& there, const Config& now);

struct OpenData {
  std::optional<TokenDataset> train, val;  // val: none if data.val is empty
  std::optional<Tokenizer> tokenizer;      // of the prepared data
  TrainData for_training() const;
};
// Opens data.train and data.val, and their tokenizer; everything must fit the model and each other.
OpenData open_data(const LoadedConfig&);
TokenDataset open_validation(const LoadedConfig&);
Tokenizer open_tokenizer(const TokenDataset&);
// The tokenizer beside data.train (or data.val), which must have this hash.
Tokenizer open_run_tokenizer(const Config&, const std::string& sha256);

// A trained model, ready to run forward. `allocate` makes what else needs memory (called twice, see
// Runtime::set_up), `plan` runs it dry.
struct LoadedModel {
  using Allocate = std::function<void(Runtime&, LanguageModel&, const Weights&)>;
  // `checkpoint`: a name such as step-00001000, or empty for the newest intact one. Error{data}.
  LoadedModel(const Config&, const std::string& checkpoint, const Allocate& allocate,
              const std::function<void()>& plan);

  Runtime runtime;
  LanguageModel model;
  Weights weights;
  TrainState state;
};

}  // namespace kla
