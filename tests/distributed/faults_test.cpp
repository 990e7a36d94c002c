// Ranks that are killed, frozen, different or failing: the job always ends, with an exit code and
// one line that names the rank, and the last checkpoint is intact.
#include <signal.h>

#include "core/clock.h"
#include "core/philox.h"
#include "tests/distributed/rank_run.h"

namespace kla::testing {
namespace {

class RankFaults : public RankRun {
 protected:
  static void expect_same(const std::string& run, const RunResult& expected) {
    const RunResult result = result_of(at(run));
    EXPECT_EQ(result.rows, expected.rows);
    EXPECT_TRUE(result.weights == expected.weights && result.optimizer == expected.optimizer)
        << "the result differs";
  }

  // The processes of a run's ranks, once it has written a row.
  static std::map<int, pid_t> running_ranks(const Program& program, const std::string& run) {
    wait_for_first_row(at(run));
    return processes_of(program.id());
  }

  static ProgramEnd end_of(Program& program) {
    const auto end = program.wait_up_to(kPatience);
    EXPECT_TRUE(end) << "the job hangs";
    return end.value_or(ProgramEnd{});
  }

  // A job of two ranks that differ: what rank 1 gets in place of rank 0's words or folder.
  static ProgramEnd run_pair(const std::vector<std::string>& first,
                             const std::vector<std::string>& second,
                             const std::string& second_folder) {
    Wrapping wrapping = under_mpirun(1);
    std::vector<std::string> words = first;
    for (const std::string& word : {std::string(":"), std::string("-n"), std::string("1"),
                                    std::string("-wdir"), at(second_folder), std::string("@")})
      words.push_back(word);
    words.insert(words.end(), second.begin(), second.end());
    return run(words, wrapping);
  }
};

TEST_F(RankFaults, KilledAtTwentyInstantsNothingIsLost) {
  ASSERT_EQ(kla(strict("undisturbed")).exit_code, 0);
  const RunResult expected = result_of(at("undisturbed"));
  const auto start = Clock::now();
  ASSERT_EQ(run_on(2, strict("timed")).exit_code, 0);
  const auto whole = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start);
  const RandomStream random(11, "kill a rank");
  int kills = 0;
  for (uint64_t life = 0; kills < 20; ++life) {
    ASSERT_LT(life, 100u) << "no progress between the kills";
    const int ranks = life % 2 ? 2 : 4;
    // Should mpirun miss the death, the others notice it.
    const auto words = strict("killed", {"dist.init_timeout_s=20", "dist.step_timeout_s=20"});
    Program program(folder(), words, under_mpirun(ranks));
    std::this_thread::sleep_for(whole * random.uniform(2 * life, 0.1, 0.9));
    const auto found = processes_of(program.id());
    const auto victim = found.find(static_cast<int>(random.uniform(2 * life + 1, 0, ranks)));
    const bool killed = victim != found.end() && ::kill(victim->second, SIGKILL) == 0;
    const ProgramEnd end = end_of(program);
    if (HasFailure()) return;
    if (end.exit_code != 0) {
      EXPECT_TRUE(killed) << end.errors;
      // mpirun itself may end by SIGPIPE when it forwards something to a rank that has died.
      EXPECT_TRUE(end.exit_code == 128 + SIGKILL || end.exit_code == 6 || end.signal == SIGPIPE)
          << end.exit_code << ", signal " << end.signal << ": " << end.errors;
      ++kills;
    } else {
      expect_same("killed", expected);
      std::filesystem::remove_all(at("killed"));
    }
  }
  const ProgramEnd end = run_on(2, strict("killed"));
  ASSERT_EQ(end.exit_code, 0) << end.errors;
  expect_same("killed", expected);
}

TEST_F(RankFaults, AFrozenRankIsNamedWithinTheTimeOut) {
  for (const int victim : {1, 0}) {
    const std::string name = "frozen_" + std::to_string(victim);
    const auto words = shared(name, {"dist.step_timeout_s=2", "train.max_tokens=2000000"});
    Program program(folder(), words, under_mpirun(4));
    const auto ranks = running_ranks(program, name);
    ASSERT_EQ(ranks.size(), 4u);
    ASSERT_EQ(::kill(ranks.at(victim), SIGSTOP), 0);
    const auto start = Clock::now();
    const ProgramEnd end = end_of(program);
    EXPECT_EQ(end.exit_code, 6) << end.errors;
    EXPECT_LT(Clock::now() - start, 20s);
    EXPECT_EQ(count_of(end.errors, "error: "), 1) << end.errors;
    EXPECT_NE(end.errors.find("error: rank " + std::to_string(victim) + " on "), std::string::npos)
        << end.errors;
    EXPECT_NE(end.errors.find(" within 2 s"), std::string::npos) << end.errors;
    EXPECT_TRUE(CheckpointStore(at(name) + "/checkpoints").newest_valid());
  }
}

TEST_F(RankFaults, SlowRanksRaiseNoAlarm) {
  Program program(folder(), strict("slow", {"dist.step_timeout_s=20"}), under_mpirun(2));
  const auto ranks = running_ranks(program, "slow");
  for (int i = 0; i < 10 && !ranks.empty(); ++i) {
    ::kill(ranks.begin()->second, SIGSTOP);
    std::this_thread::sleep_for(50ms);
    ::kill(ranks.begin()->second, SIGCONT);
    std::this_thread::sleep_for(50ms);
  }
  const ProgramEnd end = end_of(program);
  ASSERT_EQ(end.exit_code, 0) << end.errors;
  ASSERT_EQ(kla(strict("quick")).exit_code, 0);
  expect_same("slow", result_of(at("quick")));
}

TEST_F(RankFaults, RanksThatDifferAreRefused) {
  const ProgramEnd config = run_pair(shared("differ"), shared("differ", {"optim.lr=1e-2"}), ".");
  expect_error(config, 2, "rank 1 on ");
  EXPECT_NE(config.errors.find("optim.lr is '0.01' there, '0.003' on rank 0"), std::string::npos)
      << config.errors;

  std::filesystem::create_directories(at("elsewhere"));
  std::filesystem::copy_file(at("micro.yaml"), at("elsewhere/micro.yaml"));
  const ProgramEnd missing = run_pair(shared("differ"), shared("differ"), "elsewhere");
  expect_error(missing, 4, "rank 1 on ");
  EXPECT_NE(missing.errors.find("data/train"), std::string::npos) << missing.errors;

  write_file(at("elsewhere/corpus.jsonl"), made_up_jsonl(2, 200));
  ASSERT_EQ(kla({"data", "prepare", "prepare.yaml", "inputs=[elsewhere/corpus.jsonl]",
                 "output=elsewhere/data", "tokenizer.path=data/tokenizer.model"})
                .exit_code,
            0);
  const ProgramEnd data = run_pair(shared("differ"), shared("differ"), "elsewhere");
  expect_error(data, 3, "rank 1 on ");
  EXPECT_NE(data.errors.find("the training set"), std::string::npos) << data.errors;
  EXPECT_FALSE(file_exists(at("differ/config.yaml"))) << "nothing was started";
}

TEST_F(RankFaults, AnErrorOfAllRanksIsPrintedOnce) {
  const ProgramEnd typo = run_on(2, shared("typo", {"optim.lrr=1"}));
  EXPECT_EQ(typo.exit_code, 2);
  EXPECT_EQ(count_of(typo.errors, "unknown key 'optim.lrr'"), 1) << typo.errors;

  const ProgramEnd three = run_on(3, shared("three"));
  expect_error(three, 2, "3 ranks cannot share the 4 micro-batches of a step evenly");
  EXPECT_EQ(count_of(three.errors, "error: "), 1) << three.errors;
  EXPECT_NE(three.errors.find("start 1, 2, 4 ranks"), std::string::npos) << three.errors;

  const ProgramEnd wild =
      run_on(2, shared("wild", {"optim.lr=1e30", "checkpoint.interval_tokens=1"}));
  expect_error(wild, 5, "5 in a row");
  EXPECT_EQ(count_of(wild.errors, "error: "), 1) << wild.errors;
  EXPECT_TRUE(CheckpointStore(at("wild/checkpoints")).newest_valid());
}

TEST_F(RankFaults, AnErrorOfRankZeroEndsAllRanks) {
  write_file(at("full"), "");  // a file where the run's folder should be
  const ProgramEnd end = run_on(2, shared("blocked", {"run.dir=full/run"}));
  expect_error(end, 4, "full/run");
  EXPECT_EQ(count_of(end.errors, "error: "), 1) << end.errors;
}

// ------------------------------------------------------------------------------- torchrun's
// variables

class TcpFaults : public RankFaults {
 protected:
  void SetUp() override {}  // no mpirun in these
  static TorchrunStyle start(const std::string& name) {
    return TorchrunStyle(folder(), 3,
                         train(name, {"train.micro_batch_size=1", "train.global_batch_tokens=192",
                                      "dist.step_timeout_s=2", "train.max_tokens=2000000"}));
  }
  static void expect_lost_rank(TorchrunStyle& ranks, int victim, const std::string& why) {
    int said = 0;
    for (int rank = 0; rank < 3; ++rank) {
      if (rank == victim) continue;
      const ProgramEnd end = ranks.wait(rank);
      EXPECT_EQ(end.exit_code, 6) << end.errors;
      said += count_of(end.errors, "error: rank " + std::to_string(victim) + " on ") &&
              count_of(end.errors, why);
    }
    EXPECT_EQ(said, 1);
  }
};

TEST_F(TcpFaults, ADeadRankIsNamedAtOnce) {
  TorchrunStyle ranks = start("tcp_dead");
  wait_for_first_row(at("tcp_dead"));
  ranks[1].send(SIGKILL);
  const auto start = Clock::now();
  expect_lost_rank(ranks, 1, "lost its connection");
  EXPECT_LT(Clock::now() - start, 10s);
}

TEST_F(TcpFaults, AFrozenRankIsNamedWithinTheTimeOut) {
  TorchrunStyle ranks = start("tcp_frozen");
  wait_for_first_row(at("tcp_frozen"));
  ranks[2].send(SIGSTOP);
  const auto start = Clock::now();
  expect_lost_rank(ranks, 2, "within 2 s");
  EXPECT_LT(Clock::now() - start, 20s);
}

}  // namespace
}  // namespace kla::testing
