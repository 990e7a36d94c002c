// What a person does with a finished run: evaluate it, sample from it, look at it.
#include <cmath>

#include "tests/faults/micro_run.h"

namespace kla::testing {
namespace {

using Commands = MicroRun;

TEST_F(Commands, EvalAppendsItsRowToTheRun) {
  const ProgramEnd end = kla({"eval", "reference", "--context", "32,128"});
  ASSERT_EQ(end.exit_code, 0) << end.errors;
  EXPECT_NE(end.output.find("length 128 | loss "), std::string::npos) << end.output;
  const std::vector<std::string> rows = metrics_rows(at("reference"), "eval.jsonl");
  const auto last = nlohmann::json::parse(rows.back());
  EXPECT_EQ(last.at("source"), "eval");
  EXPECT_EQ(last.at("length"), 128);
  EXPECT_LT(last.at("loss").get<double>(), std::log(448.0));
}

TEST_F(Commands, GenerateIsDecidedByItsSeed) {
  auto text = [](const std::string& seed) {
    const ProgramEnd end = kla(
        {"generate", "reference", "--prompt", "the model", "--seed", seed, "--max-tokens", "60"});
    EXPECT_EQ(end.exit_code, 0) << end.errors;
    return end.output;
  };
  const std::string first = text("1");
  EXPECT_GT(first.size(), 10u) << first;
  EXPECT_EQ(text("1"), first);
  EXPECT_NE(text("2"), first);
}

TEST_F(Commands, CheckPassesATrainedRun) {
  const ProgramEnd end = kla({"check", "reference", "--tokens", "100"});
  ASSERT_EQ(end.exit_code, 0) << end.errors;
  EXPECT_NE(end.output.find("pass"), std::string::npos) << end.output;
  EXPECT_EQ(end.output.find("FAIL"), std::string::npos) << end.output;
}

TEST_F(Commands, ReportWritesAPage) {
  const ProgramEnd end = kla({"report", "reference", "-o", "page.html"});
  ASSERT_EQ(end.exit_code, 0) << end.errors;
  EXPECT_NE(read_file(at("page.html")).find("reference"), std::string::npos);
}

TEST_F(Commands, TrainWarnsOfARuleWithoutABoundAndStopsWhenItDiverges) {
  const std::string warning = "can write with a gain beta |k|^2 above 2";
  const ProgramEnd bounded = kla(train("bounded", {"train.max_tokens=512"}));
  EXPECT_EQ(bounded.exit_code, 0) << bounded.errors;
  EXPECT_EQ(bounded.errors.find(warning), std::string::npos) << bounded.errors;

  const ProgramEnd unbounded =
      kla(train("unbounded", {"model.step_size.rule=no_norm", "optim.lr=1e4"}));
  expect_error(unbounded, 5, "5 in a row");
  EXPECT_NE(unbounded.errors.find("warning: step-size rule no_norm"), std::string::npos);
  EXPECT_NE(unbounded.errors.find(warning), std::string::npos) << unbounded.errors;
}

TEST_F(Commands, DryRunOfTheStudyPlansWithoutAllocating) {
  const ProgramEnd end = kla({"train", KLA_SOURCE_DIR "/configs/paper/kla_0.4b.yaml", "--dry-run"});
  ASSERT_EQ(end.exit_code, 0) << end.errors;
  EXPECT_NE(end.output.find("parameters  516,938,700:"), std::string::npos) << end.output;
  EXPECT_NE(end.output.find("schedule    476 steps"), std::string::npos) << end.output;
  EXPECT_FALSE(file_exists(at("runs"))) << "a dry run writes nothing";
}

}  // namespace
}  // namespace kla::testing
