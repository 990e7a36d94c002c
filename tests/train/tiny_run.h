// A training run small enough for a test to repeat it dozens of times: 2 layers, D 32, T 64, 64
// ids, 5 ms a step. Every checkpoint it saves is kept in memory as a Snapshot.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/log.h"
#include "core/philox.h"
#include "data/dataset_writer.h"
#include "tests/support/metrics_rows.h"
#include "tests/train/scratch.h"
#include "train/trainer.h"

namespace kla::testing {

inline constexpr int64_t kTinyLength = 64, kTinyVocabulary = 64, kTinyStep = 4 * kTinyLength;

// Documents in which an id mostly follows from the one before, so that there is something to learn.
inline TokenDataset make_tokens(const std::string& directory, int64_t tokens, uint64_t seed) {
  const RandomStream random(seed, "tiny tokens");
  DatasetWriter writer(directory, kTinyVocabulary, std::string(64, 'a'), tokens);
  uint64_t draw = 0;
  for (int64_t left = tokens, count; left > 0; left -= count) {
    count = std::min<int64_t>(left, 190);
    std::vector<int32_t> ids(static_cast<size_t>(count), 1);
    for (size_t i = 1; i < ids.size(); ++i) {
      const uint64_t bits = random.bits(draw++);
      ids[i] = bits % 4 ? (5 * ids[i - 1] + 3) % 64 : static_cast<int32_t>(bits / 4 % 64);
    }
    writer.add_document(ids.data(), count, 3 * count);
  }
  writer.finish({});
  return TokenDataset::open(directory, kTinyVocabulary, Verify::payload);
}

inline Config tiny_config(int64_t steps) {
  Config c;
  c.device.backend = "cpu";
  c.model.hidden_size = 32;
  c.model.num_heads = 2;
  c.model.key_head_dim = 12;
  c.model.value_head_dim = 24;
  c.model.intermediate_size = 64;
  c.model.vocab_size = kTinyVocabulary;
  c.data.seq_len = kTinyLength;
  c.train.max_tokens = steps * kTinyStep;
  c.train.global_batch_tokens = kTinyStep;
  c.train.micro_batch_size = 2;
  c.optim.lr = 3e-3;
  c.schedule.warmup_tokens = 4 * kTinyStep;
  c.checkpoint.interval_tokens = 1;  // after every step
  c.log.interval_steps = 1;
  c.log.csv = false;
  return c;
}

// Everything a run would continue from.
struct Snapshot {
  TrainState state;
  std::map<std::string, std::vector<float>> tensors;

  TrainState state_without_clock() const {
    TrainState s = state;
    s.train_seconds = 0;
    return s;
  }
  bool operator==(const Snapshot& other) const {
    return state_without_clock() == other.state_without_clock() && tensors == other.tensors;
  }
};

class TinyRun {
 public:
  TinyRun(const Config& config, const TokenDataset& train, const TokenDataset* val = nullptr)
      : trainer(
            config,
            {.train = &train, .val = val, .token_bytes = std::vector<int32_t>(kTinyVocabulary, 3)}),
        directory_(RunDirectory::open(scratch_.path())) {
    log::set_terminal_level(log::Level::error);
  }

  void restore(const Snapshot& from) {
    for (NamedView& tensor : tensors()) {
      const std::vector<float>& values = from.tensors.at(tensor.name);
      std::copy(values.begin(), values.end(), tensor.view.as<float>());
    }
    trainer.push_tensors();
    trainer.state() = from.state;
  }

  // `at_save` is called once a checkpoint is taken, and may tamper with the run.
  void run(const std::function<void(int64_t step)>& at_save = [](int64_t) {}) {
    MetricsWriter metrics(scratch_.path(), trainer.state().step, false);
    trainer.run(metrics, directory_, [&] {
      const int64_t step = trainer.state().step;
      snapshots[step] = take();
      at_save(step);
      return std::to_string(step);
    });
  }

  Snapshot take() {
    trainer.pull_tensors();
    Snapshot s{trainer.state(), {}};
    for (const NamedView& tensor : tensors()) {
      const float* values = tensor.view.as<float>();
      s.tensors[tensor.name].assign(values, values + tensor.view.size());
    }
    return s;
  }

  std::vector<NamedView> tensors() {
    std::vector<NamedView> all = trainer.model_tensors();
    for (NamedView& tensor : trainer.optimizer_tensors()) all.push_back(tensor);
    return all;
  }
  const Snapshot& last() const { return snapshots.rbegin()->second; }
  std::vector<std::string> rows() const { return metrics_rows(scratch_.path()); }
  std::vector<double> losses() const {  // of all metrics rows; NaN if no update reached the weights
    std::vector<double> values;
    for (const std::string& row : metrics_rows(scratch_.path(), "train.jsonl")) {
      const nlohmann::json loss = nlohmann::json::parse(row).at("loss");
      values.push_back(loss.is_number() ? loss.get<double>() : Trainer::kNoLoss);
    }
    return values;
  }

  Trainer trainer;
  std::map<int64_t, Snapshot> snapshots;  // by step

 private:
  ScratchDirectory scratch_;
  RunDirectory directory_;
};

}  // namespace kla::testing
