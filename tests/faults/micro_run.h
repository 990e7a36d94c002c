// What the tests of the program share: a corpus of 200 made-up documents, prepared by `kla data
// prepare`; the config of a model of 37 thousand parameters; and what an undisturbed run of it
// leaves behind.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "tests/data/data_fixture.h"
#include "tests/faults/program.h"
#include "tests/support/metrics_rows.h"
#include "tests/train/scratch.h"
#include "train/checkpoint.h"

namespace kla::testing {

inline constexpr int64_t kMicroSteps = 60;

// What a run leaves: every bit of the newest checkpoint's tensors, and the metrics rows.
struct RunResult {
  int64_t step = -1;
  std::string weights, optimizer;
  std::vector<std::string> rows;
};

inline RunResult result_of(const std::string& run) {
  const auto newest = CheckpointStore(run + "/checkpoints").newest_valid();
  if (!newest) return {};
  return {newest->step, read_file(newest->path + "/model.safetensors"),
          read_file(newest->path + "/optim.rank0000.safetensors"), metrics_rows(run)};
}

class MicroRun : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new ScratchDirectory;
    write_file(at("corpus.jsonl"), made_up_jsonl(1, 200));
    write_file(at("prepare.yaml"),
               "inputs: [corpus.jsonl]\noutput: data\nval_fraction: 0.1\n"
               "tokenizer: {vocab_size: 400, character_coverage: 1}\n");
    write_file(at("micro.yaml"),
               "run: {name: micro, dir: \"{name}\"}\n"
               "model: {hidden_size: 32, num_heads: 2, key_head_dim: 16, value_head_dim: 32,\n"
               "        intermediate_size: 64, vocab_size: 448}\n"
               "data: {train: data/train, val: data/val, seq_len: 64}\n"
               "train: {max_tokens: 15360, global_batch_tokens: 256, micro_batch_size: 2}\n"
               "optim: {lr: 3.0e-3}\n"
               "eval: {interval_tokens: 2000, max_tokens: 256}\n"
               "checkpoint: {interval_tokens: 500}\n"
               "log: {interval_steps: 3}\n"
               "device: {threads: 1}\n");
    const ProgramEnd prepared = kla({"data", "prepare", "prepare.yaml"});
    ASSERT_EQ(prepared.exit_code, 0) << prepared.errors;
    const ProgramEnd end = kla({"train", "micro.yaml", "run.name=reference"});
    ASSERT_EQ(end.exit_code, 0) << end.errors;
    reference_ = new RunResult(result_of(at("reference")));
    ASSERT_EQ(reference_->step, kMicroSteps);
    ASSERT_EQ(reference_->rows.size(), 20u + 8u);  // every third step; evaluations
  }
  static void TearDownTestSuite() {
    delete reference_;
    delete folder_;
  }

  static std::string at(const std::string& name) { return *folder_ / name; }
  static ProgramEnd kla(const std::vector<std::string>& words) {
    return run_program(folder_->path(), words);
  }
  static std::vector<std::string> train(const std::string& name,
                                        const std::vector<std::string>& more = {}) {
    std::vector<std::string> words = {"train", "micro.yaml", "run.name=" + name};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }

  // Starts a run and returns once its metrics hold a row.
  static void wait_for_first_row(const std::string& run) {
    using namespace std::chrono_literals;
    const auto deadline = std::chrono::steady_clock::now() + 60s;
    const std::string file = run + "/metrics/train.jsonl";
    while (!file_exists(file) || read_file(file).find("\"t\":\"train\"") == std::string::npos) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "no metrics in " << run;
      std::this_thread::sleep_for(1ms);
    }
  }

  static void expect_result_of_reference(const std::string& run) {
    const RunResult result = result_of(run);
    EXPECT_EQ(result.step, reference_->step);
    EXPECT_TRUE(result.weights == reference_->weights) << "the weights differ";
    EXPECT_TRUE(result.optimizer == reference_->optimizer) << "the optimizer state differs";
    EXPECT_EQ(result.rows, reference_->rows);
  }

  static const std::string& folder() { return folder_->path(); }
  static const RunResult& reference() { return *reference_; }

 private:
  static inline ScratchDirectory* folder_ = nullptr;
  static inline RunResult* reference_ = nullptr;
};

// An exit code, and one "error:" line that names the thing.
inline void expect_error(const ProgramEnd& end, int exit_code, const std::string& words) {
  EXPECT_EQ(end.exit_code, exit_code) << end.errors;
  const size_t line = end.errors.find("error: ");
  ASSERT_NE(line, std::string::npos) << end.errors;
  const size_t begin = end.errors.rfind('\n', line) + 1;  // a config error names its place first
  const std::string message = end.errors.substr(begin, end.errors.find('\n', line) - begin);
  EXPECT_NE(message.find(words), std::string::npos) << end.errors;
}

}  // namespace kla::testing
