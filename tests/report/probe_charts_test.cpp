// The figures of the probes: one a quantity, a panel a layer, bands where there are numbers.
#include "report/probe_charts.h"

#include <gtest/gtest.h>

#include <cmath>

#include "report/html.h"
#include "synthetic_run.h"
#include "xml_check.h"

namespace kla::report {
namespace {

int64_t count(const std::string& text, const std::string& part) {
  int64_t found = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++found;
  return found;
}

std::vector<RunData> probed_runs() {
  const std::string parent = temporary_directory();
  return {
      read_run(write_synthetic_run(parent, {.probes = 20}, "kla")),
      read_run(write_synthetic_run(parent, {.name = "gdn", .rule = "gdn", .probes = 20}, "gdn"))};
}

TEST(ProbeCharts, OnePanelALayerWithBandsOfEachRun) {
  const std::vector<RunData> runs = probed_runs();
  const std::vector<Figure> figures = probe_figures(runs, summarize(runs));
  ASSERT_EQ(figures.size(), 11u);
  for (const Figure& figure : figures) {
    EXPECT_EQ(XmlReader("<a>" + figure.svg + "</a>").read().error, "");
    EXPECT_EQ(count(figure.svg, ">layer 0<") + count(figure.svg, ">layer 1<"), 2);
    EXPECT_EQ(count(figure.svg, "class=\"band\""), 2 * 2 * 2);  // layers, runs, bands
    EXPECT_EQ(count(figure.svg, ">training tokens<"), 2);
    EXPECT_NE(figure.caption.find("n = 1,024 values a layer and probe."), std::string::npos);
  }
  EXPECT_NE(figures[0].svg.find("Write gain"), std::string::npos);
  EXPECT_EQ(count(figures[0].svg, "class=\"pale\""), 4);  // the largest gain
  EXPECT_EQ(count(figures[1].svg, "class=\"pale\""), 0);
}

TEST(ProbeCharts, ArePartOfThePageOnlyIfThereAreProbes) {
  const std::vector<RunData> runs = probed_runs();
  const std::string page = render_report(runs);
  EXPECT_EQ(XmlReader(page).read().error, "");
  EXPECT_EQ(XmlReader(page).read().elements.at("figure"), 6 + 11);
  EXPECT_NE(page.find("Inside the mixers"), std::string::npos);
  const std::string blind =
      render_report({read_run(write_synthetic_run(temporary_directory(), {}, "kla"))});
  EXPECT_EQ(blind.find("Inside the mixers"), std::string::npos);
}

TEST(ProbeCharts, GapsAreGapsAndLongRunsAreThinned) {
  std::vector<RunData> runs = probed_runs();
  runs.resize(1);
  for (ProbeValues& values : runs[0].probes[10].values) values.low = std::nan("");  // layer 0
  const std::vector<Figure> figures = probe_figures(runs, summarize(runs));
  // The outer band of layer 0 falls into two outlines: one more path that begins with M.
  const auto outlines = [](const Figure& figure) { return count(figure.svg, "Z\""); };
  EXPECT_EQ(count(figures[0].svg, "ZM"), 1);
  EXPECT_EQ(outlines(figures[0]), 4);

  const size_t size = figures[0].svg.size();
  const std::vector<ProbeRow> rows = runs[0].probes;
  for (int i = 1; i < 100; ++i)
    runs[0].probes.insert(runs[0].probes.end(), rows.begin(), rows.end());
  EXPECT_LT(probe_figures(runs, summarize(runs))[0].svg.size(), 8 * size);
}

TEST(ProbeCharts, AtMostThreeVariantsAreDrawn) {
  const std::string parent = temporary_directory();
  std::vector<RunData> runs;
  for (const char* rule : {"kla", "gdn", "longhorn", "kaczmarz"})
    runs.push_back(
        read_run(write_synthetic_run(parent, {.name = rule, .rule = rule, .probes = 4}, rule)));
  const Summary summary = summarize(runs);
  EXPECT_EQ(count(probe_figures(runs, summary)[1].svg, "class=\"band\""), 2 * 3 * 2);
  const std::string legend = probe_legend(runs, summary);
  EXPECT_NE(legend.find("longhorn"), std::string::npos);
  EXPECT_EQ(legend.find("kaczmarz"), std::string::npos);
}

}  // namespace
}  // namespace kla::report
