// What several commands need: the choices that the model layer adds to the config, the config of a
// run, and the data a config names, opened and checked against each other.
#pragma once

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

struct OpenData {
  std::optional<TokenDataset> train, val;  // val: none if data.val is empty
  std::optional<Tokenizer> tokenizer;      // of the prepared data
  TrainData for_training() const;
};
// Opens data.train and data.val, and their tokenizer; everything must fit the model and each other.
OpenData open_data(const LoadedConfig&);
TokenDataset open_validation(const LoadedConfig&);
Tokenizer open_tokenizer(const TokenDataset&);

}  // namespace kla
