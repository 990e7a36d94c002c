// The run directory: one process at a time, and records that stay whole.
#include "train/run_directory.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/train/scratch.h"

namespace kla::testing {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

class RunDirectories : public ::testing::Test {
 protected:
  Json json(const std::string& name) const { return Json::parse(read_file(run_ + "/" + name)); }

  ScratchDirectory scratch_;
  std::string run_ = scratch_ / "runs/trial";
};

TEST_F(RunDirectories, IsCreatedWithItsConfig) {
  const RunDirectory run = RunDirectory::open(run_);
  EXPECT_EQ(run.path(), run_);
  EXPECT_FALSE(run.has_config());
  run.write_config("run: {name: trial}\n");
  EXPECT_TRUE(run.has_config());
  EXPECT_EQ(run.config_text(), "run: {name: trial}\n");
}

TEST_F(RunDirectories, ASecondProcessIsRefusedAndToldWhoHoldsIt) {
  const RunDirectory run = RunDirectory::open(run_);
  const std::string holder = "process " + std::to_string(::getpid()) + " on ";
  const pid_t child = ::fork();
  if (child == 0) {
    const Caught error = caught([&] { RunDirectory::open(run_); });
    ::_exit(error.code == Exit::usage && error.message.find(holder) != std::string::npos ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST_F(RunDirectories, TheLockOfAKilledProcessIsFree) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const RunDirectory run = RunDirectory::open(run_);
    if (::write(ready[1], "x", 1) != 1) ::_exit(1);
    ::pause();
    ::_exit(0);
  }
  char c = 0;
  ASSERT_EQ(::read(ready[0], &c, 1), 1);
  EXPECT_REFUSED(Exit::usage, "process " + std::to_string(child), RunDirectory::open(run_));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(caught([&] { RunDirectory::open(run_); }).code, Exit::ok);
  EXPECT_EQ(json("lock").at("pid"), ::getpid());
}

TEST_F(RunDirectories, TheRecordHoldsEveryStartAndEnd) {
  const RunIdentity identity{.command_line = {"c.yaml", "a=\xff"},
                             .config_hash = "c",
                             .tokenizer_sha256 = "t",
                             .train_identity = "d",
                             .val_identity = "",
                             .run_seed = ~uint64_t{0},
                             .shuffle_seed = 2,
                             .cost = {},
                             .device = "cpu",
                             .threads = 3};
  const RunDirectory run = RunDirectory::open(run_);
  run.record_start(identity, 0);
  run.record_end(75, 10);
  run.record_start(identity, 10);
  run.record_end(0, 20);
  const Json record = json("run.json");
  EXPECT_EQ(record.at("config_hash"), "c");
  EXPECT_EQ(record.at("seeds").at("run").get<uint64_t>(), ~uint64_t{0});
  for (const char* key : {"version", "git", "compiler", "build", "flags"})
    EXPECT_TRUE(record.at("program").contains(key)) << key;
  for (const char* key : {"os", "cpu", "host", "cores", "memory"})
    EXPECT_TRUE(record.at("machine").contains(key)) << key;
  ASSERT_EQ(record.at("starts").size(), 2u);
  EXPECT_EQ(record["starts"][0].at("exit_code"), 75);
  EXPECT_EQ(record["starts"][1].at("from_step"), 10);
  EXPECT_EQ(record["starts"][1].at("to_step"), 20);
}

TEST_F(RunDirectories, ADamagedRecordIsBegunAnew) {
  const RunDirectory run = RunDirectory::open(run_);
  for (const char* damaged : {"", "{", "[]", R"({"starts":7})", R"({"starts":{}})"}) {
    write_file(run_ + "/run.json", damaged);
    run.record_end(0, 1);
    run.record_start({}, 0);
    run.record_end(0, 1);
    EXPECT_EQ(json("run.json").at("starts").size(), 1u) << damaged;
  }
}

TEST_F(RunDirectories, AFailureIsRecordedWhateverItFinds) {
  const RunDirectory run = RunDirectory::open(run_);
  for (const char* status : {"", "[]", R"({"step":"x"})"}) {
    write_file(run_ + "/status.json", status);
    run.record_failure(4, "disk \xff full");
    EXPECT_EQ(json("status.json").at("state"), "failed") << status;
  }
  fs::remove_all(run_);
  run.record_failure(4, "gone");  // and says nothing
}

TEST_F(RunDirectories, AReaderNeverSeesHalfAStatus) {
  const RunDirectory run = RunDirectory::open(run_);
  run.write_status({.state = "training", .loss = NAN, .last_checkpoint = ""});
  EXPECT_FALSE(json("status.json").contains("loss"));
  std::jthread writer([&](std::stop_token stop) {
    for (int64_t step = 0; !stop.stop_requested(); ++step)
      run.write_status({.state = "training", .step = step, .loss = 1.5, .last_checkpoint = ""});
  });
  int64_t last = 0;
  for (int i = 0; i < 300; ++i) {
    const Json status = json("status.json");
    EXPECT_GE(status.at("step").get<int64_t>(), last);
    last = status.at("step");
  }
}

TEST_F(RunDirectories, APlaceThatCannotBeWrittenIsOneClearError) {
  write_file(scratch_ / "runs", "a file");
  EXPECT_REFUSED(Exit::io, "cannot create '" + run_, RunDirectory::open(run_));
  EXPECT_REFUSED(Exit::io, "cannot create '/proc/kla", RunDirectory::open("/proc/kla"));
}

TEST_F(RunDirectories, AReadOnlyDirectoryIsOneClearError) {
  SmallDisk disk("size=64k");
  if (!disk.mounted()) GTEST_SKIP() << "mounting a small tmpfs needs root";
  const std::string run = disk.path() + "/trial";
  RunDirectory::open(run);
  ASSERT_TRUE(disk.make_read_only());
  EXPECT_REFUSED(Exit::io, "cannot write '" + run + "/lock': Read-only file system",
                 RunDirectory::open(run));
  EXPECT_REFUSED(Exit::io, "Read-only file system", RunDirectory::open(disk.path() + "/other"));
}

}  // namespace
}  // namespace kla::testing
