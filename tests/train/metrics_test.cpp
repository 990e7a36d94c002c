// Metrics files: what a row holds, and that a resumed run's files equal those of one that was never
// stopped.
#include "train/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/train/scratch.h"

namespace kla::testing {
namespace {

using Json = nlohmann::json;

class Metrics : public ::testing::Test {
 protected:
  std::string content(const std::string& name) const {
    return read_file(scratch_ / ("metrics/" + name));
  }
  std::vector<Json> rows(const std::string& name) const {
    std::vector<Json> found;
    std::istringstream lines(content(name));
    for (std::string line; std::getline(lines, line);) found.push_back(Json::parse(line));
    return found;
  }
  // The rows without what a clock decides and what only an interrupted run has.
  std::string comparable(const std::string& name) const {
    std::string text;
    for (Json& row : rows(name)) {
      if (row["t"] == "event") continue;
      for (const char* key : {"time", "tok_s", "step_s", "seconds"}) row.erase(key);
      text += row.dump() + "\n";
    }
    return text;
  }
  static ProbeRow probe_row(int64_t step) {
    ProbeRow row{.step = step, .tokens = 10 * step, .probe = {}};
    row.probe.layer = 1;
    for (size_t p = 0; p < kProbes; ++p) {
      ProbeSummary& summary = row.probe.values[p];
      summary.count = 2 * step;
      summary.all.fill(static_cast<double>(step) / 3);
      summary.all[5] = static_cast<double>(p);
      summary.heads = {summary.all, summary.all};
      summary.heads[1][0] = HUGE_VAL;
    }
    return row;
  }
  void train(int64_t from, int64_t to) {
    MetricsWriter writer(scratch_.path(), from, true);
    writer.write(EventRow{from, from ? "resume" : "start", ""});
    for (int64_t step = from + 1; step <= to; ++step) {
      const double x = static_cast<double>(step);
      writer.write(TrainRow{.step = step, .tokens = 10 * step, .loss = 1 / x, .lr = x / 3});
      if (step % 5 == 0) writer.write(EvalRow{.step = step, .length = 64, .loss = 2 / x});
      if (step % 4 == 0) writer.write(probe_row(step));
    }
    writer.sync();
  }

  ScratchDirectory scratch_;
};

TEST_F(Metrics, ARowHoldsEveryFieldAndEveryBit) {
  const double loss = 0.1 + 0.2;
  MetricsWriter(scratch_.path(), 0, false)
      .write(TrainRow{.step = 3,
                      .tokens = 4,
                      .loss = loss,
                      .grad_norm = 5e-324,
                      .lr = 1e-3,
                      .tok_s = 6,
                      .step_s = 7,
                      .skipped = 8});
  const Json row = rows("train.jsonl").at(0);
  EXPECT_EQ(row.at("t"), "train");
  EXPECT_EQ(row.at("step"), 3);
  EXPECT_EQ(row.at("tokens"), 4);
  EXPECT_EQ(row.at("loss").get<double>(), loss);
  EXPECT_EQ(row.at("grad_norm").get<double>(), 5e-324);
  EXPECT_EQ(row.at("lr").get<double>(), 1e-3);
  EXPECT_EQ(row.at("tok_s"), 6);
  EXPECT_EQ(row.at("step_s"), 7);
  EXPECT_EQ(row.at("skipped"), 8);
  EXPECT_GT(row.at("time").get<double>(), 1.7e9);
  EXPECT_FALSE(file_exists(scratch_ / "metrics/train.csv"));
}

TEST_F(Metrics, ProbeRowsHoldEveryQuantityOfEveryHead) {
  MetricsWriter writer(scratch_.path(), 0, false);
  EXPECT_FALSE(file_exists(scratch_ / "metrics/probes.jsonl")) << "no probes, no file";
  writer.write(probe_row(1));
  const Json row = rows("probes.jsonl").at(0);
  EXPECT_EQ(row.at("t"), "probe");
  EXPECT_EQ(row.at("step"), 1);
  EXPECT_EQ(row.at("tokens"), 10);
  EXPECT_EQ(row.at("layer"), 1);
  EXPECT_EQ(row.at("quantiles"), Json({0.05, 0.25, 0.5, 0.75, 0.95, 1}));
  for (const char* name :
       {"write_gain", "decay", "half_life", "key_norm", "value_norm", "key_cosine",
        "residual_before", "residual_after", "state_norm", "state_rank", "inverse_max"}) {
    const Json& quantity = row.at(name);
    EXPECT_EQ(quantity.at("n"), 2) << name;
    ASSERT_EQ(quantity.at("all").size(), kQuantiles.size()) << name;
    EXPECT_EQ(quantity.at("all")[0], 0.333333) << name;
    EXPECT_EQ(quantity.at("heads").at(1).at(0), "inf") << name;
  }
  EXPECT_EQ(row.at("inverse_max").at("all")[5], kProbes - 1);
}

TEST_F(Metrics, EvalRowsDeriveTheirRatios) {
  MetricsWriter writer(scratch_.path(), 0, false);
  writer.write(EvalRow{.step = 1,
                       .tokens = 2,
                       .length = 64,
                       .loss = std::log(8.0),
                       .loss_low = NAN,
                       .loss_high = NAN,
                       .n_tokens = 100,
                       .n_bytes = 300});
  writer.write(EvalRow{.loss = 1, .loss_low = 0.5, .loss_high = 1.5});
  const std::vector<Json> found = rows("eval.jsonl");
  EXPECT_NEAR(found.at(0).at("ppl").get<double>(), 8, 1e-12);
  EXPECT_NEAR(found.at(0).at("bpb").get<double>(), 1, 1e-12);  // 3 bits a token of 3 bytes
  EXPECT_FALSE(found.at(0).contains("loss_low"));
  EXPECT_FALSE(found.at(1).contains("bpb"));
  EXPECT_EQ(found.at(1).at("loss_high"), 1.5);
}

TEST_F(Metrics, NonFiniteValuesAreStrings) {
  MetricsWriter(scratch_.path(), 0, true)
      .write(TrainRow{.loss = NAN, .grad_norm = HUGE_VAL, .lr = -HUGE_VAL, .tok_s = NAN});
  const Json row = rows("train.jsonl").at(0);
  EXPECT_EQ(row.at("loss"), "nan");
  EXPECT_EQ(row.at("grad_norm"), "inf");
  EXPECT_EQ(row.at("lr"), "-inf");
  EXPECT_EQ(row.at("tok_s"), "nan");
  EXPECT_NE(content("train.csv").find(",nan,inf,-inf,nan,"), std::string::npos);
}

TEST_F(Metrics, RowsAreThereAtOnceAndTakeAnyText) {
  MetricsWriter writer(scratch_.path(), 0, false);
  writer.write(EventRow{5, "checkpoint_failed", "a\nb\xff\xc3\xa9"});
  EXPECT_EQ(rows("train.jsonl").at(0).at("what"), "checkpoint_failed");
}

TEST_F(Metrics, AResumedRunsFilesEqualAnUninterruptedOnes) {
  train(0, 20);
  const std::string train_rows = comparable("train.jsonl"), eval_rows = comparable("eval.jsonl");
  const std::string probe_rows = comparable("probes.jsonl"), csv = content("train.csv");
  ASSERT_EQ(std::count(train_rows.begin(), train_rows.end(), '\n'), 20);
  for (int64_t checkpoint : {12, 10, 0, 19}) {
    train(checkpoint, 20);
    EXPECT_EQ(comparable("train.jsonl"), train_rows) << checkpoint;
    EXPECT_EQ(comparable("eval.jsonl"), eval_rows) << checkpoint;
    EXPECT_EQ(comparable("probes.jsonl"), probe_rows) << checkpoint;
    EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 21);
  }
  // 8 + 10 + 20 + 1 train rows, 2 + 2 + 4 + 1 eval rows and 2 + 3 + 5 + 1 probe rows were trained
  // anew, and three resume events lie beyond a later checkpoint.
  EXPECT_EQ(rows("superseded.jsonl").size(), 39u + 9u + 11u + 2u);
}

TEST_F(Metrics, ATornLastLineIsCut) {
  train(0, 5);
  const std::string whole = content("train.jsonl"), rows_before = comparable("train.jsonl");
  for (size_t cut = whole.rfind('\n', whole.size() - 2) + 2; cut < whole.size(); ++cut) {
    write_file(scratch_ / "metrics/train.jsonl", whole.substr(0, cut));
    train(4, 5);
    EXPECT_EQ(comparable("train.jsonl"), rows_before) << cut;
  }
}

TEST_F(Metrics, LinesThatAreNoRowsAreDropped) {
  train(0, 5);
  const std::string before = comparable("train.jsonl");
  const std::string foreign = "5\n[]\nnull\n{\"step\":\"x\"}\n\n{\"step\":1e400}\n\xff\n";
  write_file(scratch_ / "metrics/train.jsonl", foreign + content("train.jsonl"));
  train(5, 5);
  EXPECT_EQ(comparable("train.jsonl"), before);
}

TEST_F(Metrics, TheCsvFollowsTheRows) {
  train(0, 8);
  train(5, 6);
  std::istringstream lines(content("train.csv"));
  std::vector<std::string> found;
  for (std::string line; std::getline(lines, line);) found.push_back(line);
  ASSERT_EQ(found.size(), 7u);
  EXPECT_EQ(found[0], "step,tokens,time,loss,grad_norm,lr,tok_s,step_s,skipped\r");
  for (size_t step = 1; step <= 6; ++step) {
    const std::string start = std::to_string(step) + "," + std::to_string(10 * step) + ",";
    EXPECT_EQ(found[step].rfind(start, 0), 0u) << found[step];
    EXPECT_EQ(std::count(found[step].begin(), found[step].end(), ','), 8);
  }
}

TEST_F(Metrics, AnEvaluationIsAppendedEvenAfterATornLine) {
  train(0, 5);
  const std::string whole = content("eval.jsonl");
  write_file(scratch_ / "metrics/eval.jsonl", whole + "{\"t\":\"ev");
  append_eval_row(scratch_.path(), EvalRow{.step = 5, .source = "eval", .length = 128, .loss = 1});
  train(5, 5);
  EXPECT_EQ(rows("eval.jsonl").size(), 2u);
  EXPECT_EQ(rows("eval.jsonl").at(1).at("source"), "eval");
}

TEST_F(Metrics, AFullDiskIsAnError) {
  if (!file_exists("/dev/full")) GTEST_SKIP();
  std::filesystem::create_directory(scratch_ / "metrics");
  train(0, 1);
  std::filesystem::remove(scratch_ / "metrics/train.csv");
  MetricsWriter writer(scratch_.path(), 1, false);
  // The open descriptor is redirected to the device that is always full.
  const std::string row = scratch_ / "metrics/train.jsonl";
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    if (std::filesystem::read_symlink(entry.path(), gone) != row) continue;
    const File full = File::append("/dev/full");
    ASSERT_GE(::dup2(full.descriptor(), std::stoi(entry.path().filename())), 0);
    break;
  }
  EXPECT_REFUSED(Exit::io, "cannot write '" + row + "': No space left", writer.write(TrainRow{}));
}

}  // namespace
}  // namespace kla::testing
