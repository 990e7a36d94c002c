// A save that is killed, or whose disk fails, at any of its system calls leaves a checkpoint that
// loads. Controls show that a careless writer is caught by the same harness. A kill leaves the page
// cache alive, so missing fsyncs are found in the order of the calls instead.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <map>
#include <set>

#include "core/log.h"
#include "tests/train/scratch.h"
#include "tests/train/toy_checkpoint.h"
#include "tests/train/traced_child.h"

namespace kla::testing {
namespace {

namespace fs = std::filesystem;

using Save = std::function<void(const std::string& directory, int64_t step)>;

void proper_save(const std::string& directory, int64_t step) {
  save_step(directory, step);
}

// Runs `save` of step 30 in a child, in a fresh copy of a directory with steps 10 and 20 (so that
// 10 has to go).
class Trial {
 public:
  explicit Trial(bool empty = false) : before_(scratch_ / "before") {
    if (empty) return;
    save_step(before_, 10);
    save_step(before_, 20);
  }

  ChildEnd run(const Save& save, const std::function<Fault(const SystemCall&)>& decide) {
    std::error_code ignored;
    fs::remove_all(directory(), ignored);
    if (fs::exists(before_)) fs::copy(before_, directory(), fs::copy_options::recursive);
    return run_traced(
        [&] {
          log::set_terminal_level(log::Level::error);
          return static_cast<int>(caught([&] { save(directory(), 30); }).code);
        },
        decide);
  }
  std::string directory() const { return scratch_ / "now"; }

  // After the accident, as a new process does it: clean up, load, check all that is visible.
  int64_t recovered_step() const {
    const CheckpointStore store(directory());
    store.remove_leftovers();
    for (const auto& entry : fs::directory_iterator(directory())) {
      const std::string name = entry.path().filename();
      if (name.rfind(".", 0) == 0) ADD_FAILURE() << "left over: " << name;
    }
    return newest_loadable_step(directory());
  }

 private:
  ScratchDirectory scratch_;
  std::string before_;
};

class CheckpointFaults : public ::testing::Test {
 protected:
  void SetUp() override { log::set_terminal_level(log::Level::error); }
  void TearDown() override { log::set_terminal_level(log::Level::info); }
};

struct KillReport {
  int64_t boundaries = 0, lost = 0, partial = 0;
};

// Kills the save before its 1st, 2nd, 3rd ... system call, until it lives to its end.
KillReport kill_everywhere(const Save& save) {
  Trial trial;
  KillReport report;
  for (bool killed = true; killed; report.boundaries += killed) {
    int64_t calls = 0;
    killed = trial
                 .run(save,
                      [&](const SystemCall&) -> Fault {
                        return {++calls > report.boundaries ? Fault::kill : Fault::none};
                      })
                 .killed;
    const int64_t step = newest_loadable_step(trial.directory());
    report.lost += step != 20 && step != 30;
    for (const Checkpoint& checkpoint : CheckpointStore(trial.directory()).list())
      report.partial += caught([&] { CheckpointStore::verify(checkpoint); }).code != Exit::ok;
    EXPECT_TRUE(killed || step == 30) << step;
  }
  return report;
}

TEST_F(CheckpointFaults, KilledBeforeEverySystemCallTheNewestOrThePreviousLoads) {
  const KillReport report = kill_everywhere(proper_save);
  EXPECT_EQ(report.lost, 0);
  EXPECT_EQ(report.partial, 0);
  EXPECT_GT(report.boundaries, 60);
  RecordProperty("boundaries", static_cast<int>(report.boundaries));
}

TEST_F(CheckpointFaults, ControlAWriterWithoutRenameShowsPartialCheckpoints) {
  const KillReport report = kill_everywhere([](const std::string& directory, int64_t step) {
    const std::string staged = directory + "/staged";
    save_step(staged, step);
    fs::create_directory(directory + "/step-00000030");
    fs::copy(staged + "/step-00000030", directory + "/step-00000030");
  });
  EXPECT_GT(report.partial, 0);
  EXPECT_EQ(report.lost, 0);  // the loader falls back
}

TEST_F(CheckpointFaults, ControlAWriterThatMakesRoomFirstLosesEverything) {
  const KillReport report = kill_everywhere([](const std::string& directory, int64_t step) {
    fs::remove_all(directory);
    save_step(directory, step);
  });
  EXPECT_GT(report.lost, 0);
}

TEST_F(CheckpointFaults, AfterAKillTheSaveIsRepeated) {
  Trial trial;
  for (int64_t kill_at = 0; kill_at < 200; kill_at += 7) {
    int64_t calls = 0;
    trial.run(proper_save, [&](const SystemCall&) -> Fault {
      return {++calls > kill_at ? Fault::kill : Fault::none};
    });
    const int64_t step = trial.recovered_step();
    if (step == 20) save_step(trial.directory(), 30);
    save_step(trial.directory(), 40);
    EXPECT_EQ(steps_in(trial.directory()), (std::vector<int64_t>{40, 30})) << kill_at;
    EXPECT_EQ(newest_loadable_step(trial.directory()), 40) << kill_at;
  }
}

TEST_F(CheckpointFaults, AKillInTheFirstSaveLeavesARunThatMayStartAfresh) {
  Trial trial(/*empty=*/true);
  bool killed = true;
  for (int64_t kill_at = 0; killed; ++kill_at) {
    int64_t calls = 0;
    killed = trial
                 .run(proper_save,
                      [&](const SystemCall&) -> Fault {
                        return {++calls > kill_at ? Fault::kill : Fault::none};
                      })
                 .killed;
    const CheckpointStore store(trial.directory());
    EXPECT_EQ(store.ever_held_one(), store.newest_valid().has_value()) << kill_at;
  }
}

const std::map<int64_t, std::string>& file_calls() {
  static const std::map<int64_t, std::string> calls = {
      {SYS_write, "write"},    {SYS_fsync, "fsync"},       {SYS_openat, "openat"},
      {SYS_mkdir, "mkdir"},    {SYS_rename, "rename"},     {SYS_unlink, "unlink"},
      {SYS_close, "close"},    {SYS_unlinkat, "unlinkat"}, {SYS_getdents64, "getdents64"},
      {SYS_statfs, "statfs"},  {SYS_rmdir, "rmdir"},       {SYS_newfstatat, "newfstatat"},
      {SYS_pread64, "pread64"}};
  return calls;
}

// Lets the n-th file call fail, for every n; returns how often the save reported it, by call.
std::map<std::string, int> fail_everywhere(Trial& trial, int error) {
  std::map<std::string, int> reported;
  bool failed = true;
  for (int64_t at = 0; failed; ++at) {
    int64_t calls = 0;
    std::string name;
    failed = false;
    const ChildEnd end = trial.run(proper_save, [&](const SystemCall& call) -> Fault {
      const auto found = file_calls().find(call.number);
      if (found == file_calls().end() || calls++ != at) return {};
      name = found->second;
      failed = true;
      return {Fault::fail, error};
    });
    const std::string where =
        "errno " + std::to_string(error) + " at " + name + ", file call " + std::to_string(at);
    const int64_t step = trial.recovered_step();
    const bool ok = end.exit_code == static_cast<int>(Exit::ok);
    EXPECT_TRUE(ok || end.exit_code == static_cast<int>(Exit::io)) << where << end.exit_code;
    EXPECT_TRUE(step == 30 || (step == 20 && !ok)) << where << ": " << step << " loads";
    reported[name] += !ok;
    reported["all"] += failed;
  }
  return reported;
}

TEST_F(CheckpointFaults, AFailingDiskIsReportedAndTheOldCheckpointStays) {
  Trial trial;
  for (int error : {ENOSPC, EIO, EDQUOT}) {
    std::map<std::string, int> reported = fail_everywhere(trial, error);
    RecordProperty("file_calls_errno_" + std::to_string(error), reported["all"]);
    // Four files, the directory and its parent up to the commit point; later faults only warn.
    EXPECT_GE(reported["write"], 4) << error;
    EXPECT_GE(reported["fsync"], 6) << error;
    EXPECT_GE(reported["openat"], 6) << error;
    EXPECT_EQ(reported["rename"], 1) << error;
    EXPECT_EQ(reported["mkdir"], 1) << error;
  }
}

TEST_F(CheckpointFaults, InterruptedAndShortTransfersAreContinued) {
  Trial trial;
  const std::set<int64_t> interruptible = {SYS_write, SYS_openat, SYS_fsync, SYS_close};
  std::map<int64_t, int64_t> seen;
  const ChildEnd interrupted = trial.run(proper_save, [&](const SystemCall& call) -> Fault {
    if (!interruptible.count(call.number)) return {};
    // close() on Linux has closed even when it says EINTR, the others have to be repeated.
    if (call.number == SYS_close || seen[call.number]++ % 2 == 1) return {};
    return {Fault::fail, EINTR};
  });
  EXPECT_EQ(interrupted.exit_code, 0);
  EXPECT_EQ(trial.recovered_step(), 30);
  EXPECT_GT(seen[SYS_write], 4);

  const ChildEnd shortened = trial.run(proper_save, [&](const SystemCall& call) -> Fault {
    return {call.number == SYS_write ? Fault::shorten : Fault::none};
  });
  EXPECT_EQ(shortened.exit_code, 0);
  EXPECT_EQ(trial.recovered_step(), 30);
}

// What a power loss could undo, from the order of the calls alone.
struct DiskCall {
  int64_t number;
  std::string path, target;
};

std::vector<DiskCall> record_save(Trial& trial) {
  std::vector<DiskCall> calls;
  trial.run(proper_save, [&](const SystemCall& call) -> Fault {
    if (call.number == SYS_write || call.number == SYS_fsync)
      calls.push_back({call.number, call.descriptor_path(0), ""});
    if (call.number == SYS_rename) calls.push_back({call.number, call.text(0), call.text(1)});
    if (call.number == SYS_mkdir) calls.push_back({call.number, call.text(0), ""});
    if (call.number == SYS_openat && (call.arguments[2] & O_CREAT) != 0)
      calls.push_back({call.number, call.text(1), ""});
    if (call.number == SYS_unlinkat && call.arguments[2] == 0)
      calls.push_back({call.number, call.descriptor_path(0) + "/" + call.text(1), ""});
    return {};
  });
  return calls;
}

// Calls that rely on something which may not be on the disk yet.
class PowerLoss {
 public:
  int count_unsafe(const std::vector<DiskCall>& calls) {
    int unsafe = 0;
    for (const DiskCall& call : calls) unsafe += !safe(call);
    return unsafe;
  }

 private:
  static std::string parent(const std::string& path) { return fs::path(path).parent_path(); }

  bool safe(const DiskCall& call) {
    switch (call.number) {
      case SYS_write:
        data_.insert(call.path);
        return true;
      case SYS_fsync:
        data_.erase(call.path);
        std::erase_if(names_, [&](const std::string& name) { return parent(name) == call.path; });
        return true;
      case SYS_rename:
        return safe_rename(call.path, call.target);
      case SYS_unlinkat:  // a checkpoint's files go after its name has gone
        return !names_.count(parent(call.path));
      default:  // openat and mkdir
        names_.insert(call.path);
        return true;
    }
  }

  // A name must stand for complete content; `latest` may name, and an old checkpoint make room for,
  // only what is there to stay.
  bool safe_rename(const std::string& from, const std::string& to) {
    bool safe = !data_.count(from);
    for (const std::set<std::string>* unsynced : {&data_, &names_})
      for (const std::string& path : *unsynced) safe = safe && path.rfind(from + "/", 0) != 0;
    if (fs::path(to).filename() == "latest" || to.find("/.trash-") != std::string::npos)
      for (const std::string& name : names_)
        safe = safe && name.find("/step-") == std::string::npos;
    names_.erase(from);
    names_.insert(to);
    return safe;
  }

  std::set<std::string> data_, names_;  // written, created or renamed since the fsync
};

TEST_F(CheckpointFaults, NothingReliesOnDataThatAPowerLossCouldTake) {
  Trial trial;
  const std::vector<DiskCall> calls = record_save(trial);
  EXPECT_EQ(PowerLoss().count_unsafe(calls), 0);
  int needed = 0, not_needed = 0;
  for (size_t i = 0; i < calls.size(); ++i) {
    if (calls[i].number != SYS_fsync) continue;
    std::vector<DiskCall> without = calls;
    without.erase(without.begin() + static_cast<std::ptrdiff_t>(i));
    ++(PowerLoss().count_unsafe(without) > 0 ? needed : not_needed);
  }
  EXPECT_EQ(needed, 8);      // four files, their directory, the commit, latest, a removal
  EXPECT_EQ(not_needed, 1);  // the name `latest`, a hint
}

TEST_F(CheckpointFaults, AFullDiskKeepsTheOldCheckpointAndLaterSavesWork) {
  SmallDisk disk("size=256k");
  if (!disk.mounted()) GTEST_SKIP() << "mounting a small tmpfs needs root";
  const std::string directory = disk.path() + "/checkpoints", filler = disk.path() + "/filler";
  save_step(directory, 10);
  EXPECT_EQ(caught([&] { File::create_new(filler).write(std::string(1 << 20, 'x')); }).code,
            Exit::io);
  EXPECT_REFUSED(Exit::io, "no room for a checkpoint", save_step(directory, 20));
  EXPECT_EQ(newest_loadable_step(directory), 10);
  fs::remove(filler);
  save_step(directory, 20);
  EXPECT_EQ(newest_loadable_step(directory), 20);
}

TEST_F(CheckpointFaults, ADiskThatFillsUpDuringTheSaveKeepsTheOldCheckpoint) {
  SmallDisk disk(
      "size=1m,nr_inodes=14");  // six are free after the first save, the second needs five
  if (!disk.mounted()) GTEST_SKIP() << "mounting a small tmpfs needs root";
  const std::string directory = disk.path() + "/checkpoints";
  save_step(directory, 10);
  for (int taken = 6; taken >= 2; --taken) {
    for (int i = 0; i < taken; ++i) write_file(disk.path() + "/filler" + std::to_string(i), "");
    EXPECT_REFUSED(Exit::io, "No space left on device", save_step(directory, 20));
    EXPECT_EQ(newest_loadable_step(directory), 10);
    for (int i = 0; i < taken; ++i) fs::remove(disk.path() + "/filler" + std::to_string(i));
  }
  save_step(directory, 20);
  EXPECT_EQ(newest_loadable_step(directory), 20);
}

}  // namespace
}  // namespace kla::testing
