// A sweep directory as the report finds it: complete, half done, damaged.
#include "report/sweep_reader.h"

#include <gtest/gtest.h>

#include <cmath>

#include "report/comparison.h"
#include "report/html.h"
#include "synthetic_run.h"
#include "xml_check.h"

namespace kla::report {
namespace {

std::string write_record(const std::string& directory, const std::vector<std::string>& variants,
                         int64_t seeds) {
  std::string text = "# Sweep of kla, format 1\nname: steps\nbaseline: kla\nruns:\n";
  for (int64_t seed = 1; seed <= seeds; ++seed)
    for (const std::string& variant : variants)
      text += "  " + variant + "-s" + std::to_string(seed) + ":\n    variant: " + variant +
              "\n    seed: " + std::to_string(seed) + "\n";
  write_file_atomic(directory + "/" + kSweepRecord, text);
  return directory;
}

// Three seeds of kla and of gdn-lr_0.002; the second is worse by 0.03 and a little.
std::string write_sweep() {
  const std::string directory = write_record(temporary_directory(), {"kla", "gdn-lr_0.002"}, 3);
  for (int64_t seed = 1; seed <= 3; ++seed) {
    const std::string s = "-s" + std::to_string(seed);
    const double wobble = 0.01 * static_cast<double>(seed);
    write_synthetic_run(directory, {.name = "kla" + s, .seed = seed, .floor = 4 + wobble},
                        "kla" + s);
    write_synthetic_run(
        directory,
        {.name = "gdn-lr_0.002" + s, .rule = "gdn", .seed = seed, .floor = 4.03 + 1.05 * wobble},
        "gdn-lr_0.002" + s);
  }
  return directory;
}

TEST(SweepReader, FindsEveryRunUnderItsVariant) {
  const std::string directory = write_sweep();
  EXPECT_TRUE(is_sweep(directory));
  EXPECT_FALSE(is_sweep(directory + "/kla-s1"));
  const SweepData sweep = read_sweep(directory);
  EXPECT_EQ(sweep.name, "steps");
  ASSERT_EQ(sweep.runs.size(), 6u);
  EXPECT_EQ(sweep.runs[1].name, "gdn-lr_0.002-s1");
  EXPECT_EQ(sweep.runs[1].variant, "gdn-lr_0.002");
  const Comparison c = compare_sweep(sweep);
  EXPECT_EQ(c.variants[1].verdict.find("higher by 0.0310 ± "), 0u) << c.variants[1].verdict;
}

TEST(SweepReader, RunsThatDidNotStartAreListed) {
  const std::string directory = write_sweep();
  std::filesystem::remove_all(directory + "/kla-s2");
  std::filesystem::remove_all(directory + "/gdn-lr_0.002-s3/metrics");
  const SweepData sweep = read_sweep(directory);
  ASSERT_EQ(sweep.runs.size(), 6u);
  const Comparison c = compare_sweep(sweep);
  EXPECT_EQ(c.variants[0].verdict, "the base; 1 of 3 runs not finished");
  EXPECT_EQ(c.variants[1].differences.size(), 1u);
  EXPECT_EQ(XmlReader(render_page(sweep).html).read().error, "");
}

TEST(SweepReader, RefusesWhatIsNoRecord) {
  const std::string directory = write_record(temporary_directory(), {}, 0);
  EXPECT_THROW(read_sweep(directory), Error);
}

TEST(References, AreReadAndRefusedByLine) {
  const auto good = parse_references(
      "rule,base,difference,measures\r\ngdn,kla,0.09,\"text, at 2048\"\r\n\nx,kla,-1e-3,y\n", "f");
  ASSERT_EQ(good.size(), 2u);
  EXPECT_EQ(good[0].measures, "text, at 2048");
  EXPECT_EQ(good[1].difference, -1e-3);
  for (const char* bad : {"gdn,kla,much,x", "gdn,kla,nan,x", "gdn,kla", "gdn,kla,,x"}) {
    try {
      parse_references(std::string("head\n") + bad + "\n", "f.csv");
      FAIL() << bad;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("'f.csv', line 2"), std::string::npos) << e.what();
    }
  }
}

TEST(SweepPage, ShowsVerdictFiguresAndPublishedValues) {
  SweepData sweep = read_sweep(write_sweep());
  sweep.references = {{"gdn", "kla", 0.09, "text loss at 2048, one seed"},
                      {"gdn", "longhorn", 0.5, "of another base"}};
  const Page page = render_page(sweep);
  EXPECT_EQ(XmlReader(page.html).read().error, "");
  for (const char* part :
       {"Sweep steps", "higher by 0.0310", "Comparison over seeds",
        "validation loss minus that of kla, nats per target", "n = 3", "published 0.0900",
        "training loss minus that of kla on the same batches, nats per token", "paired by seed"})
    EXPECT_NE(page.html.find(part), std::string::npos) << part;
  EXPECT_EQ(page.html.find("of another base"), std::string::npos);
}

TEST(SweepPage, EveryFigureStandsAlone) {
  const Page page = render_page(read_sweep(write_sweep()));
  ASSERT_EQ(page.figures.size(), 8u);
  std::set<std::string> names;
  for (const Figure& figure : page.figures) {
    const std::string file = standalone_svg(figure);
    EXPECT_EQ(XmlReader(file).read().error, "") << figure.name;
    EXPECT_EQ(file.find("<svg xmlns="), 0u);
    EXPECT_NE(file.find("svg .axis"), std::string::npos) << "the style is missing";
    names.insert(figure.name);
  }
  EXPECT_EQ(names.count(""), 0u);
  EXPECT_EQ(names.size(), page.figures.size());
}

}  // namespace
}  // namespace kla::report
