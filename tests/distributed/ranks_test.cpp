// The same run on 1, 2 and 4 ranks of the real program: equal losses, equal bits in strict mode,
// and checkpoints that any number of ranks continues.
#include <nlohmann/json.hpp>

#include "tests/distributed/rank_run.h"

namespace kla::testing {
namespace {

using Ranks = RankRun;

std::vector<double> losses_of(const std::string& run) {
  std::vector<double> losses;
  for (const char* file : {"train.jsonl", "eval.jsonl"})
    for (const std::string& row : metrics_rows(run, file))
      losses.push_back(nlohmann::json::parse(row).at("loss"));
  return losses;
}

void expect_same_result(const RunResult& result, const RunResult& expected) {
  EXPECT_EQ(result.step, expected.step);
  EXPECT_EQ(result.rows, expected.rows);
  EXPECT_TRUE(result.weights == expected.weights) << "the weights differ";
  EXPECT_TRUE(result.optimizer == expected.optimizer) << "the optimizer state differs";
}

// Twenty steps of warm-up. Later, training itself lets any difference of rounding grow: two orders
// of summation on one rank then differ as much as two numbers of ranks.
TEST_F(Ranks, GiveTheSameLosses) {
  const std::vector<std::string> gentle = {"train.max_tokens=5120", "schedule.warmup_tokens=5120",
                                           "optim.lr=1e-3", "log.interval_steps=1"};
  ASSERT_EQ(kla(shared("one", gentle)).exit_code, 0);
  const std::vector<double> expected = losses_of(at("one"));
  ASSERT_EQ(expected.size(), 23u);  // 20 steps, 3 evaluations
  for (int ranks : {2, 4}) {
    const std::string name = "on_" + std::to_string(ranks);
    const ProgramEnd end = run_on(ranks, shared(name, gentle));
    ASSERT_EQ(end.exit_code, 0) << end.errors;
    EXPECT_EQ(count_of(end.output, "finished: "), 1) << "rank 0 speaks alone";
    const std::vector<double> losses = losses_of(at(name));
    ASSERT_EQ(losses.size(), expected.size());
    for (size_t i = 0; i < losses.size(); ++i) EXPECT_NEAR(losses[i], expected[i], 1e-6) << i;
  }
  // Control: other samples are seen by the comparison.
  ASSERT_EQ(run_on(2, shared("other", {"data.shuffle_seed=5", "train.max_tokens=256"})).exit_code,
            0);
  EXPECT_GT(std::abs(losses_of(at("other"))[0] - expected[0]), 1e-6);
}

TEST_F(Ranks, GiveTheSameBitsInStrictMode) {
  ASSERT_EQ(kla(strict("strict_1")).exit_code, 0);
  const RunResult expected = result_of(at("strict_1"));
  for (int ranks : {2, 4}) {
    const std::string name = "strict_" + std::to_string(ranks);
    const ProgramEnd end = run_on(ranks, strict(name));
    ASSERT_EQ(end.exit_code, 0) << end.errors;
    expect_same_result(result_of(at(name)), expected);
  }
}

TEST_F(Ranks, AnEvenNumberOfMicroBatchesIsNotNeeded) {  // 12: a tree with odd leaves
  const std::vector<std::string> twelve = {"train.global_batch_tokens=768"};
  ASSERT_EQ(kla(strict("twelve_1", twelve)).exit_code, 0);
  ASSERT_EQ(run_on(4, strict("twelve_4", twelve)).exit_code, 0);
  expect_same_result(result_of(at("twelve_4")), result_of(at("twelve_1")));
}

TEST_F(Ranks, RepeatTheirBits) {
  for (const char* name : {"again_1", "again_2"}) ASSERT_EQ(run_on(2, shared(name)).exit_code, 0);
  expect_same_result(result_of(at("again_2")), result_of(at("again_1")));
}

// SIGUSR1 to mpirun, which passes it on, at the first sign of progress beyond what is there.
void stop_by_signal(const std::string& folder, const std::vector<std::string>& words,
                    const Wrapping& wrapping, const std::string& run, size_t rows) {
  Program program(folder, words, wrapping);
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (metrics_rows(run, "train.jsonl").size() < rows) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline);
    std::this_thread::sleep_for(1ms);
  }
  program.send(SIGUSR1);
  const auto end = program.wait_up_to(kPatience);
  ASSERT_TRUE(end) << "the run hangs";
  ASSERT_EQ(end->exit_code, 75) << end->output << end->errors;
  EXPECT_EQ(count_of(end->output, "continue with 'kla train --resume"), 1) << end->output;
  EXPECT_LE(count_of(end->errors, "stopping: finishing this step"), 1) << end->errors;
}

TEST_F(Ranks, ContinueACheckpointOfAnyNumberOfRanks) {
  ASSERT_EQ(kla(strict("whole")).exit_code, 0);
  size_t rows = 2;
  int64_t step = 0;
  for (int ranks : {4, 2, 4}) {
    stop_by_signal(folder(), strict("parts"), under_mpirun(ranks), at("parts"), rows);
    if (HasFatalFailure()) return;
    const int64_t now = result_of(at("parts")).step;
    EXPECT_GT(now, step);
    step = now;
    rows = metrics_rows(at("parts"), "train.jsonl").size() + 2;
  }
  ASSERT_LT(step, kMicroSteps) << "the signals came too late to show anything";
  const ProgramEnd end = run_on(2, {"train", "--resume", "parts"});
  ASSERT_EQ(end.exit_code, 0) << end.errors;
  EXPECT_NE(end.output.find("continued from step " + std::to_string(step)), std::string::npos);
  expect_same_result(result_of(at("parts")), result_of(at("whole")));
}

TEST_F(Ranks, HoldAShareOfTheOptimizerState) {
  const ProgramEnd end = run_on(4, shared("memory"));
  EXPECT_NE(end.output.find("1/4 of the optimizer"), std::string::npos) << end.output;
  const auto memory_of = [](const std::string& output) {
    const size_t at = output.find("  optimizer ");
    return std::stod(output.substr(output.find_first_not_of(' ', at + 12)));
  };
  const double whole = memory_of(kla(shared("memory_1")).output);
  EXPECT_NEAR(memory_of(end.output), whole / 4, 0.02 * whole);

  const ProgramEnd plan =
      run(shared("plan", {"--dry-run"}),
          {{"env", "RANK=0", "WORLD_SIZE=4", "MASTER_ADDR=nowhere", "MASTER_PORT=1"}, {}});
  EXPECT_EQ(plan.exit_code, 0) << plan.errors;
  EXPECT_EQ(memory_of(plan.output), memory_of(end.output));
}

// ------------------------------------------------------------------------------- torchrun's
// variables

TEST_F(MicroRun, TorchrunStyleRanksGiveTheSameBits) {
  const auto words = train("tcp_1", {"train.micro_batch_size=1", "device.deterministic=strict"});
  ASSERT_EQ(kla(words).exit_code, 0);
  for (int ranks : {2, 4}) {
    const std::string name = "tcp_" + std::to_string(ranks);
    TorchrunStyle processes(
        folder(), ranks, train(name, {"train.micro_batch_size=1", "device.deterministic=strict"}));
    for (int rank = 0; rank < ranks; ++rank) {
      const ProgramEnd end = processes.wait(rank);
      ASSERT_EQ(end.exit_code, 0) << rank << end.errors;
      EXPECT_EQ(end.output.empty(), rank != 0);
    }
    expect_same_result(result_of(at(name)), result_of(at("tcp_1")));
  }
}

}  // namespace
}  // namespace kla::testing
