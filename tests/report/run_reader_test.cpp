#include "report/run_reader.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "core/file.h"
#include "synthetic_run.h"

namespace kla::report {
namespace {

TEST(RunReader, ReadsWhatTrainingWrote) {
  const RunData run = read_run(write_synthetic_run(temporary_directory(), {}, "folder"));
  EXPECT_EQ(run.name, "kla");
  EXPECT_TRUE(run.notes.empty());
  ASSERT_EQ(run.train.size(), 160u);
  EXPECT_EQ(run.train[0].step, 5);
  EXPECT_EQ(run.train[0].tokens, 5 * 8192);
  ASSERT_EQ(run.evals.size(), 13u);
  EXPECT_TRUE(std::isnan(run.evals[0].low));
  EXPECT_EQ(run.evals[0].targets, 16384);
  EXPECT_LT(run.evals.back().low, run.evals.back().loss);
  EXPECT_EQ(value_of(run.record, "program.git"), "3f1c2ab4d5e6");
  EXPECT_EQ(value_of(run.record, "command_line"), "kla train configs/quickstart/kla.yaml");
  EXPECT_EQ(value_of(run.record, "starts.1"),
            "started 2026-01-01T00:00:00Z, from_step 0, exit_code 0");
  EXPECT_EQ(value_of(run.status, "state"), "finished");
}

TEST(RunReader, ReadsProbesWhereThereAreSome) {
  const std::string parent = temporary_directory();
  EXPECT_TRUE(read_run(write_synthetic_run(parent, {}, "blind")).probes.empty());
  const std::string directory = write_synthetic_run(parent, {.probes = 8}, "probed");
  const std::string path = directory + "/metrics/probes.jsonl";
  write_file_atomic(path, read_file(path) + R"({"t":"probe","step":900,"tokens":7372800,"layer":0,)"
                                            R"("decay":{"n":4,"all":["nan",1,2,3,4,"inf"]},)"
                                            R"("foreign":{"n":4,"all":[1,2]}})"
                                            "\n");
  const RunData run = read_run(directory);
  EXPECT_TRUE(run.notes.empty());
  ASSERT_EQ(run.probes.size(), 17u);
  EXPECT_EQ(run.probes[3].layer, 1);
  EXPECT_EQ(run.probes[3].tokens, 200 * 8192);
  ASSERT_EQ(run.probes[3].values.size(), 11u);
  EXPECT_EQ(run.probes[3].values[0].count, 1024);
  const ProbeRow& last = run.probes.back();
  ASSERT_EQ(last.values.size(), 1u);
  EXPECT_EQ(last.values[0].name, "decay");
  EXPECT_TRUE(std::isnan(last.values[0].low));
  EXPECT_EQ(last.values[0].median, 2);
  EXPECT_TRUE(std::isnan(last.values[0].most));
}

TEST(RunReader, TornAndDamagedLinesCostNothingElse) {
  const std::string directory = write_synthetic_run(temporary_directory(), {.rows = 4}, "run");
  const std::string path = directory + "/metrics/train.jsonl";
  const std::string rows = read_file(path);
  write_file_atomic(path, rows + R"({"t":"train","step":25,"tok)");
  EXPECT_EQ(read_run(directory).train.size(), 4u);
  EXPECT_TRUE(read_run(directory).notes.empty());  // a torn last line is ordinary
  write_file_atomic(path, "garbage\n" + rows);
  const RunData damaged = read_run(directory);
  EXPECT_EQ(damaged.train.size(), 4u);
  ASSERT_EQ(damaged.notes.size(), 1u);
  EXPECT_EQ(damaged.notes[0], "metrics/train.jsonl: 1 unreadable lines left out");
}

TEST(RunReader, NonFiniteAndAbsentFieldsAreNaN) {
  const std::string directory = temporary_directory();
  make_directories(directory + "/metrics");
  write_file_atomic(directory + "/metrics/train.jsonl",
                    R"({"t":"train","step":1,"tokens":10,"loss":"nan","grad_norm":"inf"})"
                    "\n"
                    R"({"t":"event","step":1,"what":"resume"})"
                    "\n"
                    R"({"t":"train","step":2,"tokens":20,"loss":3.5})"
                    "\n");
  const RunData run = read_run(directory);
  ASSERT_EQ(run.train.size(), 2u);
  EXPECT_TRUE(std::isnan(run.train[0].loss));
  EXPECT_TRUE(std::isnan(run.train[0].grad_norm));
  EXPECT_TRUE(std::isnan(run.train[1].lr));
  EXPECT_FALSE(run.train[0].resumed);
  EXPECT_TRUE(run.train[1].resumed);
  EXPECT_EQ(run.notes.size(), 4u);  // config.yaml, run.json, status.json, metrics/eval.jsonl
}

TEST(RunReader, RefusesWhatIsNoRunDirectory) {
  try {
    read_run(temporary_directory());
    FAIL() << "an empty directory was read";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::usage);
    EXPECT_FALSE(error.remedy().empty());
  }
}

TEST(RunReader, FrozenConfig) {
  const KeyValues values = parse_frozen_config(
      "# frozen\n"
      "run:\n"
      "  name: \"a # b\"     # default\n"
      "  tags: [x, \"y: z\"]  # a.yaml:3:4\n"
      "model:\n"
      "  step_size:\n"
      "    rule: kla        # default\n"
      "    eps: 1e-06\n"
      "  num_heads: 2\n"
      "data:\n"
      "  train: a#b\n");
  EXPECT_EQ(value_of(values, "run.name"), "a # b");
  EXPECT_EQ(value_of(values, "run.tags"), "[x, \"y: z\"]");
  EXPECT_EQ(value_of(values, "model.step_size.rule"), "kla");
  EXPECT_EQ(value_of(values, "model.step_size.eps"), "1e-06");
  EXPECT_EQ(value_of(values, "model.num_heads"), "2");
  EXPECT_EQ(value_of(values, "data.train"), "a#b");
  EXPECT_EQ(values.size(), 6u);
}

}  // namespace
}  // namespace kla::report
