// Sweeps as a person runs them: killed and started again, stopped and continued, with a variant
// that diverges; and what two runs say to each other afterwards.
#include <signal.h>
#include <sys/file.h>

#include <algorithm>
#include <set>

#include "core/philox.h"
#include "report/run_reader.h"
#include "tests/faults/micro_run.h"
#include "train/safetensors.h"

namespace kla::testing {
namespace {

class SweepProgram : public MicroRun {
 protected:
  static constexpr const char* kVariants =
      "variants:\n"
      "  kla: {}\n"
      "  gdn: {model.step_size.rule: gdn}\n"
      "  wild: {optim.lr: 1.0e+30, train.grad_clip: 0}\n";

  static void SetUpTestSuite() {
    MicroRun::SetUpTestSuite();
    write_sweep("whole");
    const ProgramEnd end = kla({"sweep", "run", "whole.yaml", "--jobs", "2"});
    ASSERT_EQ(end.exit_code, 5) << end.errors;  // that of the variant that diverged
    table_ = table_of(end);
    ASSERT_NE(table_.find("3 of 3 runs diverged"), std::string::npos) << end.output;
  }
  static void write_sweep(const std::string& name, const std::string& variants = kVariants) {
    write_file(at(name + ".yaml"), "base: micro.yaml\nname: " + name +
                                       "\ndir: \"{name}\"\ngrid: {run.seed: [1, 2, 3]}\n" +
                                       variants);
  }
  static std::string table_of(const ProgramEnd& end) {
    const size_t begin = end.output.find("validation loss after training");
    return begin == std::string::npos ? "" : end.output.substr(begin);
  }
  static std::string csv_of(const std::string& sweep) {
    const ProgramEnd end = kla({"report", sweep, "-o", sweep + ".html", "--csv", sweep + ".csv"});
    EXPECT_EQ(end.exit_code, 0) << end.errors;
    return read_file(at(sweep + ".csv"));
  }
  static std::vector<std::string> run_names() {
    std::vector<std::string> names;
    for (const char* variant : {"kla", "gdn", "wild"})
      for (const char* seed : {"1", "2", "3"}) names.push_back(std::string(variant) + "-s" + seed);
    return names;
  }
  // The table, every metrics row, and every bit of the weights of runs that finished. (The newest
  // checkpoint of one that diverged is wherever it last saved: an interruption adds one.)
  static void expect_result_of_whole(const std::string& sweep) {
    EXPECT_EQ(csv_of(sweep), csv_of("whole"));
    for (const std::string& run : run_names()) {
      const std::string here = at(sweep + "/" + run), there = at("whole/" + run);
      EXPECT_EQ(metrics_rows(here), metrics_rows(there)) << run;
      EXPECT_FALSE(metrics_rows(here).empty()) << run;
      if (run.starts_with("wild")) continue;
      EXPECT_TRUE(result_of(here).weights == result_of(there).weights) << run;
    }
  }
  static const std::string& table() { return table_; }

 private:
  static inline std::string table_;
};

// The process that trains in `run` now; 0 if none does.
pid_t holder_of(const std::string& run) {
  if (!file_exists(run + "/lock")) return 0;
  const File lock = File::open_read(run + "/lock");
  if (::flock(lock.descriptor(), LOCK_EX | LOCK_NB) == 0) return 0;
  const std::string pid = report::value_of(report::read_flat_json(run + "/lock"), "pid");
  return pid.empty() ? 0 : std::stoi(pid);
}

// In every second life the children are killed as well, before they can save.
TEST_F(SweepProgram, KilledAtTwentyInstantsItEndsWithTheSameTable) {
  write_sweep("timed");
  const auto start = std::chrono::steady_clock::now();
  ASSERT_EQ(kla({"sweep", "run", "timed.yaml", "--jobs", "2"}).exit_code, 5);
  const auto whole = std::chrono::duration_cast<std::chrono::microseconds>(
      std::chrono::steady_clock::now() - start);
  write_sweep("killed");
  const RandomStream random(11, "kill");
  int kills = 0, finished = 0;
  for (uint64_t life = 0; kills < 20 || finished == 0; ++life) {
    ASSERT_LT(life, 200u) << "no progress between the kills";
    Program program(folder(), {"sweep", "run", "killed.yaml", "--jobs", "2"});
    if (kills < 20) {
      std::this_thread::sleep_for(whole * random.uniform(life, 0.0, 0.5));
      program.send(SIGKILL);
      for (const std::string& run : run_names())
        if (const pid_t child = life % 2 ? holder_of(at("killed/" + run)) : 0; child > 0)
          ::kill(child, SIGKILL);
    }
    const ProgramEnd end = program.wait();
    if (end.signal == SIGKILL) {
      ++kills;
      continue;
    }
    ASSERT_EQ(end.exit_code, 5) << end.errors;
    EXPECT_EQ(table_of(end), table());
    expect_result_of_whole("killed");
    std::filesystem::remove_all(at("killed"));
    ++finished;
  }
  RecordProperty("finished_sweeps", finished);
}

TEST_F(SweepProgram, ASignalStopsTheRunsAndTheSameCommandContinuesThem) {
  write_sweep("stopped");
  Program program(folder(), {"sweep", "run", "stopped.yaml", "--jobs", "2"});
  wait_for_first_row(at("stopped/kla-s1"));
  program.send(SIGINT);
  const ProgramEnd end = program.wait();
  ASSERT_EQ(end.exit_code, 75) << end.errors;
  EXPECT_NE(end.output.find("the same command continues"), std::string::npos) << end.output;
  EXPECT_EQ(holder_of(at("stopped/kla-s1")), 0) << "a run outlived the sweep";
  const auto status = report::read_flat_json(at("stopped/kla-s1/status.json"));
  EXPECT_EQ(report::value_of(status, "state"), "stopped");
  EXPECT_GE(result_of(at("stopped/kla-s1")).step, 3);

  const ProgramEnd again = kla({"sweep", "run", "stopped.yaml"});
  ASSERT_EQ(again.exit_code, 5) << again.errors;
  EXPECT_EQ(table_of(again), table());
  expect_result_of_whole("stopped");
}

TEST_F(SweepProgram, FinishedRunsAreSkippedAndAChangedBaseIsNoticed) {
  const std::string before = read_file(at("whole/kla-s1/run.json"));
  const ProgramEnd again = kla({"sweep", "run", "whole.yaml"});
  EXPECT_EQ(again.exit_code, 5);
  EXPECT_EQ(again.output.find("start "), std::string::npos) << again.output;
  EXPECT_EQ(table_of(again), table());
  EXPECT_EQ(read_file(at("whole/kla-s1/run.json")), before);

  write_file(at("other.yaml"), "defaults: [micro.yaml]\noptim: {lr: 1.0e-3}\n");
  write_file(at("changed.yaml"),
             "base: other.yaml\nname: whole\ndir: \"{name}\"\ngrid: {run.seed: [1, 2, 3]}\n" +
                 std::string(kVariants));
  const ProgramEnd changed = kla({"sweep", "run", "changed.yaml"});
  expect_error(changed, 2, "'whole/kla-s1' was started with another config");
  EXPECT_NE(changed.errors.find("optim.lr: 0.003 there, 0.001 now"), std::string::npos);
}

TEST_F(SweepProgram, ARunThatCannotStartLeavesTheOthersAlone) {
  write_sweep("partial", "variants: {kla: {}, lost: {data.train: nowhere}}\n");
  const ProgramEnd end = kla({"sweep", "run", "partial.yaml"});
  EXPECT_EQ(end.exit_code, 4) << end.errors;
  EXPECT_NE(end.errors.find("lost-s1 failed: "), std::string::npos) << end.errors;
  EXPECT_NE(table_of(end).find("kla      3/3"), std::string::npos) << end.output;
  EXPECT_NE(table_of(end).find("3 of 3 runs not finished"), std::string::npos) << end.output;
}

TEST_F(SweepProgram, ASweepDirectoryHasOneProcess) {
  write_sweep("shared");
  Program first(folder(), {"sweep", "run", "shared.yaml"});
  wait_for_first_row(at("shared/kla-s1"));
  expect_error(kla({"sweep", "run", "shared.yaml"}), 2,
               "sweep directory 'shared' is in use by process " + std::to_string(first.id()));
  first.send(SIGTERM);
  EXPECT_EQ(first.wait().exit_code, 75);
}

TEST_F(SweepProgram, PlanMeasuresAndWritesNothing) {
  write_sweep("planned");
  const ProgramEnd end = kla({"sweep", "plan", "planned.yaml", "--jobs", "2"});
  ASSERT_EQ(end.exit_code, 0) << end.errors;
  for (const char* part : {"gdn-s3", "model.step_size.rule=gdn", "not started", "measured: 5 steps",
                           "9 runs: 3 variants, compared with kla"})
    EXPECT_NE(end.output.find(part), std::string::npos) << end.output;
  EXPECT_FALSE(file_exists(at("planned")));
  const ProgramEnd whole = kla({"sweep", "plan", "whole.yaml", "--no-timing"});
  EXPECT_NE(whole.output.find("diverged, step "), std::string::npos) << whole.output;
}

// With lr 0 the weights stay as they were initialised.
TEST_F(SweepProgram, VariantsShareInitialValuesAndData) {
  write_sweep("paired",
              "variants:\n  gdn: {model.step_size.rule: gdn, optim.lr: 0}\n"
              "  scalar: {model.step_size.rule: learned_scalar, optim.lr: 0}\n");
  ASSERT_EQ(kla({"sweep", "run", "paired.yaml"}).exit_code, 0);
  const auto tensors = [&](const std::string& run) {
    const std::string path = CheckpointStore(at("paired/" + run + "/checkpoints")).list()[0].path;
    const std::string file = path + "/model.safetensors", bytes = read_file(file);
    uint64_t header = 0;
    std::copy_n(bytes.data(), sizeof header, reinterpret_cast<char*>(&header));
    std::map<std::string, std::string> values;
    const SafetensorsFile opened = SafetensorsFile::open(file);
    for (const auto& [name, entry] : opened.tensors())
      values[name] = bytes.substr(8 + header + static_cast<size_t>(entry.begin),
                                  static_cast<size_t>(entry.end - entry.begin));
    return values;
  };
  const auto gdn = tensors("gdn-s2"), scalar = tensors("scalar-s2"), other = tensors("gdn-s3");
  EXPECT_GT(scalar.size(), gdn.size());
  size_t drawn = 0;
  for (const auto& [name, values] : gdn) {
    EXPECT_TRUE(scalar.at(name) == values) << name;
    drawn += other.at(name) != values;
  }
  EXPECT_GT(drawn, 10u) << "another seed, other values";
  const auto seeds = report::read_flat_json(at("paired/scalar-s2/run.json"));
  EXPECT_EQ(report::value_of(seeds, "seeds.run"), "2");
  EXPECT_EQ(report::value_of(seeds, "seeds.shuffle"), "2");
}

// Stand-ins for what Slurm gives: srun runs its arguments, scontrol notes what was put back.
TEST_F(SweepProgram, TheArrayJobRunsEveryRun) {
  write_sweep("array", "variants: {kla: {}, gdn: {model.step_size.rule: gdn}}\n");
  const ProgramEnd script = kla({"sweep", "run", "array.yaml", "--emit", "slurm", "--jobs", "4"});
  ASSERT_EQ(script.exit_code, 0) << script.errors;
  EXPECT_NE(script.output.find("#SBATCH --array=0-5%4"), std::string::npos);
  write_file(at("array.sbatch"), script.output);
  make_directories(at("bin"));
  write_file(at("bin/srun"), "#!/bin/sh\nexec \"$@\"\n");
  write_file(at("bin/scontrol"), "#!/bin/sh\necho \"$@\" >> requeued\n");
  for (const char* tool : {"bin/srun", "bin/scontrol"})
    std::filesystem::permissions(at(tool), std::filesystem::perms::owner_all);
  const auto task = [&](int id, const std::string& program) {
    return std::system(("cd '" + folder() + "' && PATH=\"$PWD/bin:$PATH\" KLA='" + program +
                        "' SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=" + std::to_string(id) +
                        " bash array.sbatch > array.out 2>&1")
                           .c_str());
  };
  for (int id = 0; id < 6; ++id) EXPECT_EQ(task(id, KLA_BINARY), 0) << read_file(at("array.out"));
  EXPECT_NE(task(6, KLA_BINARY), 0);
  const ProgramEnd all = kla({"sweep", "run", "array.yaml"});
  EXPECT_EQ(all.exit_code, 0);
  EXPECT_NE(all.output.find("6 of them done"), std::string::npos) << all.output;
  EXPECT_TRUE(result_of(at("array/gdn-s2")).weights == result_of(at("whole/gdn-s2")).weights);

  write_file(at("bin/stopped"), "#!/bin/sh\nexit 75\n");
  std::filesystem::permissions(at("bin/stopped"), std::filesystem::perms::owner_all);
  EXPECT_NE(task(3, "stopped"), 0);
  EXPECT_EQ(read_file(at("requeued")), "requeue 7_3\n");
}

TEST_F(SweepProgram, CompareIsPairedAndRefusesOtherData) {
  const ProgramEnd end = kla({"compare", "whole/kla-s1", "whole/gdn-s1"});
  ASSERT_EQ(end.exit_code, 0) << end.errors;
  EXPECT_NE(end.output.find("B - A  "), std::string::npos) << end.output;
  EXPECT_NE(end.output.find("paired bootstrap over documents"), std::string::npos);
  const ProgramEnd self = kla({"compare", "whole/kla-s1", "whole/kla-s1", "--context", "32"});
  EXPECT_NE(self.output.find("+0.0000 nats [+0.0000, +0.0000], perplexity ratio 1.0000: not sep"),
            std::string::npos)
      << self.output;

  write_file(at("prepare2.yaml"),
             "inputs: [corpus.jsonl]\noutput: data2\nval_fraction: 0.2\n"
             "tokenizer: {path: data/tokenizer.model}\n");
  ASSERT_EQ(kla({"data", "prepare", "prepare2.yaml"}).exit_code, 0);
  ASSERT_EQ(kla(train("elsewhere", {"data.train=data2/train", "data.val=data2/val"})).exit_code, 0);
  expect_error(kla({"compare", "reference", "elsewhere"}), 3, "different validation sets");
  ASSERT_EQ(kla(train("half", {"data.train=data2/train"})).exit_code, 0);
  expect_error(kla({"compare", "reference", "half"}), 3, "different training sets");
  write_file(at("prepare3.yaml"),
             "inputs: [corpus.jsonl]\noutput: data3\nval_fraction: 0.1\n"
             "tokenizer: {vocab_size: 380, character_coverage: 1}\n");
  ASSERT_EQ(kla({"data", "prepare", "prepare3.yaml"}).exit_code, 0);
  ASSERT_EQ(kla(train("words", {"data.train=data3/train", "data.val=data3/val"})).exit_code, 0);
  expect_error(kla({"compare", "reference", "words"}), 3, "different tokenizers");
}

}  // namespace
}  // namespace kla::testing
