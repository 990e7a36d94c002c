// The page as a whole: well-formed, closed to the outside, honest about seeds, small.
#include "report/html.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/file.h"
#include "synthetic_run.h"
#include "xml_check.h"

namespace kla::report {
namespace {

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::vector<RunData> two_runs() {
  const std::string parent = temporary_directory();
  return {
      read_run(write_synthetic_run(parent, {}, "kla")),
      read_run(write_synthetic_run(parent, {.name = "gdn", .rule = "gdn", .floor = 4.11}, "gdn"))};
}

TEST(XmlReader, FindsFaults) {
  EXPECT_EQ(XmlReader("<a b=\"c\"><d/>x &lt; y</a>").read().error, "");
  for (const char* broken : {"<a>", "<a></b>", "<a b=c></a>", "<a>1 < 2</a>", "<a>R&D</a>",
                             "<a b=\"1\"2\"></a>", "<a><b></a></b>", "<a>\x01</a>"})
    EXPECT_NE(XmlReader(broken).read().error, "") << broken;
}

TEST(Html, IsWellFormedAndComplete) {
  const std::string page = render_report(two_runs());
  const XmlFacts facts = XmlReader(page).read();
  EXPECT_EQ(facts.error, "");
  EXPECT_EQ(facts.elements.at("figure"), 6);  // loss x 2, validation x 2, lr, gradient norm
  for (const char* part :
       {"default-src &#39;none&#39;; style-src &#39;unsafe-inline&#39;", "62.86", "[62.11, 63.62]",
        "3.41M", "model.step_size.rule", "5d41402abc4b2a76b9719d911017c592", "and no padding",
        "#4E79A7", "#59A14F", "stroke-dasharray=\"7 3\"", "n = 160 a run", "trained at"})
    EXPECT_TRUE(contains(page, part)) << part;
}

TEST(Html, LoadsNothingAndRunsNothing) {
  const std::string page = render_report(two_runs());
  const XmlFacts facts = XmlReader(page).read();
  for (const char* element : {"script", "link", "img", "iframe", "object", "use", "image"})
    EXPECT_EQ(facts.elements.count(element), 0u) << element;
  for (const std::string& value : facts.attribute_values)
    EXPECT_TRUE(!contains(value, "://") || value == "http://www.w3.org/2000/svg") << value;
  EXPECT_FALSE(contains(page, "url("));
  EXPECT_FALSE(contains(page, "@import"));
}

TEST(Html, HostileTextStaysText) {
  std::vector<RunData> runs = two_runs();
  runs[0].name = "<script>alert(\"1\")</script>&'\x1b[2J\xff";
  runs[0].config.push_back({"x</td>", "<b>\"'&"});
  runs[0].config_text = "</pre><img src=x onerror=1>";
  runs[0].record.push_back({"\"><svg onload=1>", "]]>-->"});
  runs[0].notes = {"<i>note"};
  const std::string page = render_report(runs);
  const XmlFacts facts = XmlReader(page).read();
  EXPECT_EQ(facts.error, "");
  EXPECT_EQ(facts.elements.count("script") + facts.elements.count("img"), 0u);
  EXPECT_TRUE(contains(page, "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;&#39;"));
  EXPECT_FALSE(contains(page, "\x1b"));
}

TEST(Html, OneSeedIsADemonstration) {
  EXPECT_TRUE(contains(render_report(two_runs()), "a demonstration, not a comparison"));
}

TEST(Html, IntervalOverSeedsNeedsThree) {
  const std::string parent = temporary_directory();
  std::vector<RunData> runs;
  for (int64_t seed : {1, 2, 3}) {
    const std::string name = "kla_s" + std::to_string(seed);
    runs.push_back(read_run(write_synthetic_run(
        parent, {.name = name, .seed = seed, .floor = 4 + 0.01 * static_cast<double>(seed)},
        name)));
  }
  const std::string three = render_report(runs);
  EXPECT_FALSE(contains(three, "demonstration"));
  EXPECT_TRUE(contains(three, "± 0.0248"));  // 4.303 * 0.01 / sqrt(3)
  runs.pop_back();
  const std::string two = render_report(runs);
  EXPECT_TRUE(contains(two, "demonstration"));
  EXPECT_TRUE(contains(two, "withheld below 3 seeds"));
  EXPECT_FALSE(contains(two, "±"));
}

TEST(Html, TheSameRunTwiceIsNotTwoSeeds) {
  const std::string parent = temporary_directory();
  std::vector<RunData> runs;
  for (const char* folder : {"a", "b", "c"})
    runs.push_back(read_run(write_synthetic_run(parent, {}, folder)));
  const std::string page = render_report(runs);
  EXPECT_TRUE(contains(page, "demonstration"));
  EXPECT_FALSE(contains(page, "±"));
  EXPECT_TRUE(contains(page, "kla (" + runs[1].directory + ")"));
}

TEST(Html, UnfinishedAndPoorRunsAreShownAndSaidSo) {
  RunData bare;
  bare.name = "bare";
  bare.directory = "somewhere";
  bare.notes = {"metrics/eval.jsonl is missing"};
  RunData running = two_runs()[0];
  running.status = {{"state", "training"}};
  const std::string page = render_report({bare, running});
  EXPECT_EQ(XmlReader(page).read().error, "");
  EXPECT_TRUE(contains(page, "bare: metrics/eval.jsonl is missing"));
  EXPECT_TRUE(contains(page, "not finished"));
  EXPECT_EQ(XmlReader(render_report({bare})).read().error, "");
}

TEST(Html, TheSameRunsGiveTheSameBytes) {
  const std::vector<RunData> runs = two_runs();
  EXPECT_EQ(render_report(runs), render_report(runs));
}

TEST(Html, StaysSmallAndKeepsSpikes) {
  std::vector<RunData> runs;
  for (int r = 0; r < 12; ++r) {
    RunData run;
    run.name = "run" + std::to_string(r);
    run.directory = run.name;
    Noise noise(r);
    for (int64_t i = 1; i <= 100000; ++i)
      run.train.push_back({.step = i,
                           .tokens = 1e4 * static_cast<double>(i),
                           .time = static_cast<double>(i),
                           .loss = 4 + 0.1 * noise.next(),
                           .grad_norm = std::exp(0.2 * noise.next()),
                           .lr = 1e-3,
                           .tok_s = 1e4,
                           .skipped = 0});
    runs.push_back(std::move(run));
  }
  runs[5].train[70001].loss = 50;  // one value of 1.2 million
  const std::string page = render_report(runs);
  EXPECT_LT(page.size(), 2'000'000u);
  EXPECT_EQ(XmlReader(page).read().error, "");
  EXPECT_TRUE(contains(page, ">50<"));  // the axis reaches it
  runs[5].train[70001].loss = 4;
  EXPECT_FALSE(contains(render_report(runs), ">50<"));
}

}  // namespace
}  // namespace kla::report
