#include "commands/report_command.h"

#include <gtest/gtest.h>

#include "commands/commands.h"
#include "core/error.h"
#include "core/file.h"
#include "tests/report/synthetic_run.h"

namespace kla {
namespace {

TEST(ReportCommand, WritesPageAndTable) {
  const std::string place = report::temporary_directory();
  const std::string run = report::write_synthetic_run(place, {}, "kla");
  const std::string page = place + "/page.html", table = place + "/table.csv";
  EXPECT_EQ(report_command({run, "-o", page, "--csv", table, "--svg", place + "/figures"}), 0);
  EXPECT_EQ(read_file(place + "/figures/training_loss.svg").rfind("<svg ", 0), 0u);
  EXPECT_EQ(read_file(page).rfind("<!DOCTYPE html>", 0), 0u);
  EXPECT_EQ(read_file(table).rfind("run,variant,", 0), 0u);
}

TEST(ReportCommand, WritesNothingWhenARunCannotBeRead) {
  const std::string place = report::temporary_directory();
  const std::string run = report::write_synthetic_run(place, {}, "kla");
  const std::string page = place + "/page.html";
  try {
    run_report({.runs = {run, place + "/nothing"}, .output = page, .csv = ""});
    FAIL() << "a missing run was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::usage);
    EXPECT_NE(std::string(error.what()).find(place + "/nothing"), std::string::npos);
  }
  EXPECT_FALSE(file_exists(page));
  EXPECT_THROW(report_command({}), Error);
}

}  // namespace
}  // namespace kla
