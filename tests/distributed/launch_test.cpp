// How the process finds out that it is one of several ranks.
#include "distributed/launch.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/train/scratch.h"

namespace kla {
namespace {

using Variables = std::map<std::string, std::string>;

Launch launch_in(const Variables& variables) {
  return detect_launch([&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

void expect_launch(const Launch& launch, const char* launcher, int rank, int size, int local) {
  EXPECT_EQ(launch.launcher, launcher);
  EXPECT_EQ(launch.rank, rank);
  EXPECT_EQ(launch.size, size);
  EXPECT_EQ(launch.local_rank, local);
}

const Variables kTorchrun = {{"RANK", "5"},
                             {"WORLD_SIZE", "8"},
                             {"LOCAL_RANK", "1"},
                             {"MASTER_ADDR", "node1"},
                             {"MASTER_PORT", "29500"}};
const Variables kOpenMpi = {{"OMPI_COMM_WORLD_RANK", "3"},
                            {"OMPI_COMM_WORLD_SIZE", "4"},
                            {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}};
const Variables kSlurm = {{"SLURM_STEP_ID", "0"},        {"SLURM_PROCID", "2"},
                          {"SLURM_STEP_NUM_TASKS", "4"}, {"SLURM_LOCALID", "0"},
                          {"SLURM_JOB_ID", "40123"},     {"SLURM_STEP_NODELIST", "gpu[07-09]"}};

Variables with(Variables variables, const Variables& more) {
  for (const auto& [name, value] : more) variables[name] = value;
  return variables;
}

TEST(Launch, ReadsTheVariablesOfEachLauncher) {
  expect_launch(launch_in({}), "", 0, 1, 0);
  expect_launch(launch_in(kTorchrun), "torchrun", 5, 8, 1);
  EXPECT_EQ(launch_in(kTorchrun).address, "node1");
  EXPECT_EQ(launch_in(kTorchrun).port, 29500);
  expect_launch(launch_in(kOpenMpi), "mpirun", 3, 4, 1);
  expect_launch(launch_in(kSlurm), "srun", 2, 4, 0);
  EXPECT_EQ(launch_in(kSlurm).address, "gpu07");
  EXPECT_EQ(launch_in(kSlurm).port, 20123);
}

TEST(Launch, TheShellOfASlurmAllocationIsNone) {
  Variables shell = kSlurm;
  shell.erase("SLURM_STEP_ID");
  expect_launch(launch_in(shell), "", 0, 1, 0);
}

TEST(Launch, MpirunInsideASlurmStepIsMpirun) {
  expect_launch(launch_in(with(kSlurm, kOpenMpi)), "mpirun", 3, 4, 1);
}

TEST(Launch, AgentsOfTorchrunKeepTheirPort) {
  EXPECT_EQ(launch_in(with(kTorchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "True"}})).port, 29501);
}

TEST(Launch, RefusesWhatMakesNoSense) {
  EXPECT_REFUSED(Exit::usage, "mpirun says rank 3 of 4", launch_in(with(kTorchrun, kOpenMpi)));
  const Variables same = {{"RANK", "3"}, {"WORLD_SIZE", "4"}};
  expect_launch(launch_in(with(kOpenMpi, same)), "mpirun", 3, 4, 1);
  EXPECT_REFUSED(Exit::usage, "MASTER_ADDR", launch_in(same));
  EXPECT_REFUSED(Exit::usage, "RANK is '8'", launch_in(with(kTorchrun, {{"RANK", "8"}})));
  EXPECT_REFUSED(Exit::usage, "RANK is '-1'", launch_in(with(kTorchrun, {{"RANK", "-1"}})));
  EXPECT_REFUSED(Exit::usage, "WORLD_SIZE is '4x'",
                 launch_in(with(kTorchrun, {{"WORLD_SIZE", "4x"}})));
  EXPECT_REFUSED(Exit::usage, "MASTER_PORT is '0'",
                 launch_in(with(kTorchrun, {{"MASTER_PORT", "0"}})));
}

TEST(Launch, FindsTheFirstHostOfANodeList) {
  EXPECT_EQ(first_host("single"), "single");
  EXPECT_EQ(first_host("a,b"), "a");
  EXPECT_EQ(first_host("n[01-03,7]"), "n01");
  EXPECT_EQ(first_host("n[7],other"), "n7");
  EXPECT_EQ(first_host("rack[1-2]-gpu,z"), "rack1-gpu");
  EXPECT_EQ(first_host("n["), "n");
}

}  // namespace
}  // namespace kla
