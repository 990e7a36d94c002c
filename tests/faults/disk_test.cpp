// Disks that fill up, cannot be written or give back something else: the older checkpoint is used,
// and the run says so.
#include <signal.h>

#include "tests/faults/micro_run.h"

namespace kla::testing {
namespace {

class Disk : public MicroRun {
 protected:
  // Stops a run after its first steps, with at least one checkpoint.
  static void train_a_little(const std::string& name, const std::string& run) {
    Program program(folder(), train(name, {"run.dir=" + run}));
    wait_for_first_row(run);
    program.send(SIGTERM);
    ASSERT_EQ(program.wait().exit_code, 75);
  }
  static std::string damage_newest(const std::string& run) {
    const Checkpoint newest = CheckpointStore(run + "/checkpoints").list().front();
    const std::string file = newest.path + "/model.safetensors";
    std::string bytes = read_file(file);
    bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
    write_file(file, bytes);
    return newest.path.substr(newest.path.find("step-"));
  }
};

TEST_F(Disk, ADamagedCheckpointGivesWayToTheOneBefore) {
  ASSERT_EQ(kla(train("damaged")).exit_code, 0);
  const std::string newest = damage_newest(at("damaged"));
  const ProgramEnd end = kla(train("damaged"));
  ASSERT_EQ(end.exit_code, 0) << end.errors;
  EXPECT_NE(end.errors.find(newest + "': model.safetensors is damaged"), std::string::npos)
      << end.errors;
  EXPECT_NE(end.output.find("continued from step"), std::string::npos) << end.output;
  expect_result_of_reference(at("damaged"));
}

TEST_F(Disk, WithoutAnIntactCheckpointNothingStartsAfresh) {
  ASSERT_EQ(kla(train("ruined")).exit_code, 0);
  const CheckpointStore store(at("ruined/checkpoints"));
  damage_newest(at("ruined"));
  std::filesystem::remove(store.list().back().path + "/state.json");
  expect_error(kla(train("ruined")), 3, "none of them is intact");
  expect_error(kla({"eval", "ruined"}), 3, "'ruined' has no intact checkpoint");
}

TEST_F(Disk, AFullDiskKeepsTheOldCheckpoint) {
  const SmallDisk disk("size=4m");
  if (!disk.mounted()) GTEST_SKIP() << "mounting a small tmpfs needs root";
  const std::string run = disk.path() + "/run";
  train_a_little("full", run);
  const RunResult before = result_of(run);
  for (const int64_t left : {100'000, 0}) {
    const int64_t free = static_cast<int64_t>(std::filesystem::space(disk.path()).available);
    write_file(disk.path() + "/filler", std::string(static_cast<size_t>(free - left), 'x'));
    const ProgramEnd end = kla(train("full", {"run.dir=" + run}));
    expect_error(end, 4, left > 0 ? "no room for a checkpoint" : run);
    EXPECT_TRUE(result_of(run).weights == before.weights);
    std::filesystem::remove(disk.path() + "/filler");
  }
  const ProgramEnd end = kla(train("full", {"run.dir=" + run}));
  ASSERT_EQ(end.exit_code, 0) << end.errors;
  expect_result_of_reference(run);
}

TEST_F(Disk, TrainingOnWithoutCheckpointsDoesNotEndInSuccess) {
  const SmallDisk disk("size=300k");  // less than one checkpoint
  if (!disk.mounted()) GTEST_SKIP() << "mounting a small tmpfs needs root";
  const ProgramEnd end =
      kla(train("hopeful", {"run.dir=" + disk.path() + "/run", "checkpoint.on_error=continue"}));
  EXPECT_NE(end.errors.find("training goes on without this checkpoint"), std::string::npos);
  EXPECT_NE(end.output.find("step 60/60"), std::string::npos) << end.output;
  expect_error(end, 4, "no room for a checkpoint");
}

TEST_F(Disk, AReadOnlyRunDirectory) {
  const SmallDisk disk("size=4m");
  if (!disk.mounted()) GTEST_SKIP() << "mounting a small tmpfs needs root";
  const std::string run = disk.path() + "/run";
  train_a_little("frozen", run);
  ASSERT_TRUE(disk.make_read_only());
  expect_error(kla(train("frozen", {"run.dir=" + run})), 4, run);
}

}  // namespace
}  // namespace kla::testing
