// A run that is killed or asked to stop, and started again with the same command, ends with the
// weights, the optimizer state and the metrics rows of a run that was left alone, bit for bit.
#include <signal.h>

#include "core/philox.h"
#include "tests/faults/micro_run.h"

namespace kla::testing {
namespace {

using Interruption = MicroRun;

std::string threads(uint64_t life) {
  return "device.threads=" + std::to_string(1 + life % 2);
}

// Kills at any time: at start, in a step, an evaluation, a save (every second step), a clean-up.
TEST_F(Interruption, KilledAtFiftyInstantsNothingIsLost) {
  const auto start = std::chrono::steady_clock::now();
  ASSERT_EQ(kla(train("timed")).exit_code, 0);
  const auto whole = std::chrono::duration_cast<std::chrono::microseconds>(
      std::chrono::steady_clock::now() - start);
  const RandomStream random(7, "kill");
  int kills = 0, finished = 0;
  for (uint64_t life = 0; kills < 50 || finished == 0; ++life) {
    ASSERT_LT(life, 500u) << "no progress between the kills";
    Program program(folder(), train("killed", {threads(life)}));
    if (kills < 50) {
      const double share = random.uniform(life, 0.0, 0.8);
      std::this_thread::sleep_for(whole * share);
      program.send(SIGKILL);
    }
    const ProgramEnd end = program.wait();
    if (end.signal == SIGKILL) {
      ++kills;
      continue;
    }
    ASSERT_EQ(end.exit_code, 0) << end.errors;
    expect_result_of_reference(at("killed"));
    std::filesystem::remove_all(at("killed"));
    ++finished;
  }
  RecordProperty("finished_runs", finished);
}

class Signal : public MicroRun, public ::testing::WithParamInterface<int> {};

TEST_P(Signal, AsksToSaveAndStop) {
  const std::string name = "signal" + std::to_string(GetParam());
  Program program(folder(), train(name));
  wait_for_first_row(at(name));
  program.send(GetParam());
  const ProgramEnd end = program.wait();
  ASSERT_EQ(end.exit_code, 75) << end.errors;
  EXPECT_NE(end.output.find("continue with 'kla train --resume"), std::string::npos) << end.output;
  const int64_t stopped_at = result_of(at(name)).step;
  EXPECT_GE(stopped_at, 3);
  EXPECT_LT(stopped_at, kMicroSteps) << "the signal came too late to show anything";

  const ProgramEnd resumed = kla({"train", "--resume", name});
  ASSERT_EQ(resumed.exit_code, 0) << resumed.errors;
  EXPECT_NE(resumed.output.find("continued from step " + std::to_string(stopped_at)),
            std::string::npos);
  expect_result_of_reference(at(name));
}
INSTANTIATE_TEST_SUITE_P(, Signal, ::testing::Values(SIGTERM, SIGINT, SIGUSR1, SIGHUP));

TEST_F(Interruption, ASecondSignalEndsAtOnce) {
  Program program(folder(), train("twice"));
  wait_for_first_row(at("twice"));
  program.send(SIGSTOP);  // both signals are there when it wakes up
  program.send(SIGTERM);
  program.send(SIGINT);
  program.send(SIGCONT);
  const ProgramEnd end = program.wait();
  EXPECT_TRUE(end.exit_code == 128 + SIGTERM || end.exit_code == 128 + SIGINT) << end.exit_code;
  EXPECT_EQ(end.output.find("stopped by"), std::string::npos) << end.output;
  ASSERT_EQ(kla(train("twice")).exit_code, 0);
  expect_result_of_reference(at("twice"));
}

TEST_F(Interruption, ARunDirectoryHasOneProcess) {
  Program first(folder(), train("shared"));
  wait_for_first_row(at("shared"));
  first.send(SIGSTOP);
  const ProgramEnd second = kla(train("shared"));
  expect_error(second, 2, "in use by process " + std::to_string(first.id()) + " on ");
  first.send(SIGCONT);
  ASSERT_EQ(first.wait().exit_code, 0);
  expect_result_of_reference(at("shared"));
}

}  // namespace
}  // namespace kla::testing
