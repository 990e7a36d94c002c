#include "report/summary.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace kla::report {
namespace {

RunData make_run(const std::string& name, const std::string& rule, const std::string& seed) {
  RunData run;
  run.name = run.directory = name;
  run.config = {{"run.name", name},
                {"run.seed", seed},
                {"model.num_heads", "2"},
                {"model.step_size.rule", rule},
                {"data.seq_len", "512"}};
  return run;
}

EvalRow eval_row(double tokens, int64_t length, int64_t targets, double loss,
                 const std::string& protocol = "full") {
  return {0, tokens, length, loss, kMissing, kMissing, kMissing, targets, protocol};
}

TEST(Summary, LastEvaluationOfEachLength) {
  RunData run = make_run("a", "kla", "1");
  run.evals = {eval_row(100, 512, 10, 5),   eval_row(200, 512, 90, 4),
               eval_row(200, 512, 10, 3),   eval_row(200, 128, 90, 6),
               eval_row(200, 512, 90, 4.5), eval_row(200, 2048, 90, 2, "kla_release_1x")};
  const RunSummary summary = summarize({run}).runs[0];
  ASSERT_EQ(summary.final.size(), 2u);
  EXPECT_EQ(summary.final[0].length, 128);
  EXPECT_EQ(headline(summary)->loss, 4.5);  // most training, then most targets, then the latest
  ASSERT_EQ(summary.protocol.size(), 1u);
  EXPECT_EQ(summary.protocol[0].loss, 2);
}

TEST(Summary, LossIsTheMeanOfTheLastTwentiethAndTimeLeavesOutGaps) {
  RunData run = make_run("a", "kla", "1");
  for (int i = 1; i <= 100; ++i)
    run.train.push_back({.step = i * 10,
                         .tokens = 1000.0 * i,
                         .time = 2.0 * i + (i > 50 ? 86400 : 0),
                         .loss = i <= 95 ? 9.0 : i,
                         .tok_s = 500,
                         .resumed = i == 51});
  const RunSummary summary = summarize({run}).runs[0];
  EXPECT_DOUBLE_EQ(summary.train_loss, (9.0 + 96 + 97 + 98 + 99 + 100) / 6);
  EXPECT_DOUBLE_EQ(summary.wall_s, 200);
  EXPECT_EQ(summary.tok_s, 500);
  EXPECT_EQ(summary.steps, 1000);
}

TEST(Summary, SeedsOfOneVariantAreGrouped) {
  const Summary summary =
      summarize({make_run("kla_s1", "kla", "1"), make_run("gdn_s1", "gdn", "1"),
                 make_run("kla_s2", "kla", "2"), make_run("longhorn", "longhorn", "1")});
  ASSERT_EQ(summary.variants.size(), 3u);
  EXPECT_EQ(summary.variants[0].name, "kla");
  EXPECT_EQ(summary.variants[0].seeds, 2u);
  EXPECT_EQ(summary.variants[0].style.colour, "#4E79A7");
  EXPECT_EQ(summary.variants[1].style.colour, "#59A14F");
  EXPECT_EQ(summary.runs[2].variant, 0u);
  ASSERT_EQ(summary.differences.size(), 2u);
  EXPECT_EQ(summary.differences[0].key, "run.seed");
  EXPECT_EQ(summary.differences[1].key, "model.step_size.rule");
  EXPECT_EQ(summary.equal_keys, 2u);
}

TEST(Summary, StylesDiffer) {
  std::vector<RunData> runs;
  for (int i = 0; i < 12; ++i) {
    runs.push_back(make_run("run" + std::to_string(i), "kla", "1"));
    runs.back().config.push_back({"optim.lr", std::to_string(i)});
  }
  const Summary summary = summarize(runs);
  for (size_t a = 0; a < 12; ++a)
    for (size_t b = 0; b < a; ++b)
      EXPECT_NE(summary.variants[a].style.colour, summary.variants[b].style.colour);
}

TEST(Summary, CsvQuotes) {
  RunData run = make_run("a,\"b\"\n", "kla", "1");
  run.evals = {eval_row(200, 128, 90, 0), eval_row(200, 512, 90, 1)};
  const std::string csv = to_csv(summarize({run, make_run("none", "gdn", "1")}));
  EXPECT_NE(csv.find("\"a,\"\"b\"\"\n\",\"a,\"\"b\"\"\n\",,0,0,,128,0,,,1,,90,"), std::string::npos)
      << csv;
  EXPECT_NE(csv.find("\r\nnone,none,,0,0,,,,"), std::string::npos) << csv;
  size_t lines = 0;
  for (size_t at = 0; (at = csv.find("\r\n", at)) != std::string::npos; at += 2) ++lines;
  EXPECT_EQ(lines, 4u);  // head, two lengths, the run without evaluation
}

}  // namespace
}  // namespace kla::report
