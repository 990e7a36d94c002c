#include "report/comparison_charts.h"

#include <algorithm>
#include <cmath>

#include "report/scale.h"
#include "report/svg_parts.h"

namespace kla::report {
namespace {

using namespace svg_parts;

constexpr double kRow = 34, kTop = 34, kBottom = 46, kGap = 14, kLetter = 6.9;  // pixels
constexpr int kWidth = 1000;
constexpr double kStart = 0.1;  // share of the training whose differences set no scale

size_t characters(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

// "" if none of its runs has started.
std::string rule_of(const Summary& summary, const VariantResult& result) {
  for (size_t i : summary.variants[result.variant].runs)
    if (!summary.runs[i].rule.empty()) return summary.runs[i].rule;
  return "";
}

// One line of the plot.
struct Row {
  const VariantResult* result;
  LineStyle style;
  const Reference* published = nullptr;
};

std::vector<Row> rows_of(const Summary& summary, const Comparison& comparison,
                         const std::vector<Reference>& references) {
  const std::string base_rule = rule_of(summary, comparison.variants[comparison.base]);
  std::vector<Row> rows;
  for (const VariantResult& result : comparison.variants) {
    if (&result == &comparison.variants[comparison.base] || result.differences.empty()) continue;
    Row row{&result, summary.variants[result.variant].style};
    for (const Reference& reference : references)
      if (reference.rule == rule_of(summary, result) && reference.base == base_rule)
        row.published = &reference;
    rows.push_back(row);
  }
  return rows;
}

double widest(const VariantResult& result) {
  const Effect& effect = result.effect;
  return std::max(effect.alone.half_width.value_or(0), effect.together.value_or(0));
}

Range range_of(const std::vector<Row>& rows) {
  Range range = {0, 0};
  for (const Row& row : rows) {
    for (double d : row.result->differences) range.include(d);
    range.include(row.result->effect.alone.mean - widest(*row.result));
    range.include(row.result->effect.alone.mean + widest(*row.result));
    if (row.published) range.include(row.published->difference);
  }
  return padded(range, Scale::Kind::linear, 0.05);
}

std::string numbers_of(const VariantResult& result) {
  const MeanInterval& d = result.effect.alone;
  std::string text = (d.mean > 0 ? "+" : "") + format_fixed(d.mean, 4);
  if (d.half_width) text += " ± " + format_fixed(*d.half_width, 4);
  return text + ", n = " + std::to_string(result.differences.size());
}

std::string whisker(const Scale& x, double y, double mean, double half, const LineStyle& style,
                    const char* width) {
  const double a = x.pixel(mean - half), b = x.pixel(mean + half);
  const Attributes ink = {{"stroke", style.colour}, {"stroke-width", width}};
  return line(a, y, b, y, ink) + line(a, y - 4, a, y + 4, ink) + line(b, y - 4, b, y + 4, ink);
}

std::string draw_row(const Row& row, const Scale& x, double y, double numbers_at) {
  const VariantResult& result = *row.result;
  const Effect& effect = result.effect;
  std::string out = marker_at(16, y, row.style, false) + text_at(28, y + 4, result.name, "label");
  if (row.published)
    out += marker_at(x.pixel(row.published->difference), y,
                     {.colour = "#595959", .marker = Marker::diamond}, true);
  if (effect.together) out += whisker(x, y, effect.alone.mean, *effect.together, row.style, "0.75");
  if (effect.alone.half_width)
    out += whisker(x, y, effect.alone.mean, *effect.alone.half_width, row.style, "2.25");
  for (double d : result.differences)
    out += line(x.pixel(d), y + 7, x.pixel(d), y + 13,
                {{"stroke", row.style.colour}, {"stroke-width", "1"}});
  out += marker_at(x.pixel(effect.alone.mean), y, row.style, false);
  return out + text_at(numbers_at, y + 4, numbers_of(result), "label");
}

std::string draw_axis(const Scale& x, double left, double right, double bottom,
                      const std::string& title) {
  std::string out;
  const std::vector<double> ticks = x.ticks(static_cast<int>((right - left) / 90));
  const double step = ticks.size() > 1 ? ticks[1] - ticks[0] : 1;
  for (double tick : ticks) {
    out += line(x.pixel(tick), kTop - 8, x.pixel(tick), bottom, {{"class", "grid"}});
    out += text_at(x.pixel(tick), bottom + 18, format_tick(tick, step), "tick middle");
  }
  out += line(left, bottom, right, bottom, {{"class", "axis"}});
  out += line(x.pixel(0), kTop - 8, x.pixel(0), bottom, {{"class", "zero"}});
  return out + text_at((left + right) / 2, bottom + 36, title, "tick middle");
}

std::string draw_forest(const std::vector<Row>& rows, const std::string& base) {
  size_t names = 0, numbers = 0;
  for (const Row& row : rows) {
    names = std::max(names, characters(row.result->name));
    numbers = std::max(numbers, characters(numbers_of(*row.result)));
  }
  const double left = 28 + kLetter * static_cast<double>(names) + kGap;
  const double numbers_at = kWidth - kLetter * static_cast<double>(numbers) - 4;
  const double right = numbers_at - kGap;
  const double bottom = kTop + kRow * static_cast<double>(rows.size());
  const Scale x(Scale::Kind::linear, range_of(rows), left, right);
  std::string content = text_at(4, 14, "better than " + base + ": left of the line", "title") +
                        draw_axis(x, left, right, bottom,
                                  "validation loss minus that of " + base + ", nats per target");
  for (size_t i = 0; i < rows.size(); ++i)
    content += draw_row(rows[i], x, kTop + kRow * (static_cast<double>(i) + 0.4), numbers_at);
  return svg(kWidth, static_cast<int>(bottom + kBottom),
             "Differences of the validation loss to " + base, content);
}

std::string caption_of(const std::vector<Row>& rows, const Comparison& comparison) {
  std::string text =
      "Differences of the validation loss to " + comparison.variants[comparison.base].name +
      ", paired by seed. Marker: mean over seeds; thick bar: 95 % Student t "
      "interval over seeds; " +
      (comparison.comparisons < 2
           ? std::string()
           : "thin bar: the same with all " + std::to_string(comparison.comparisons) +
                 " comparisons covered together (Bonferroni); ") +
      "ticks below: the seeds; n = paired seeds.";
  for (const Row& row : rows)
    if (row.published)
      text += " Grey diamond, " + row.published->rule + ": published " +
              format_fixed(row.published->difference, 4) + ", " + row.published->measures + ".";
  return text;
}

// ------------------------------------------------------------------------------ over the training

// Logged training loss of `run` minus that of `base`, at the steps both logged; smoothed.
std::vector<Point> loss_difference(const RunData& run, const RunData& base) {
  std::vector<Point> points;
  size_t j = 0;
  for (const TrainRow& row : run.train) {
    while (j < base.train.size() && base.train[j].step < row.step) ++j;
    if (j < base.train.size() && base.train[j].step == row.step)
      points.push_back({row.tokens, row.loss - base.train[j].loss});
  }
  return smoothed(points);
}

// Over the seeds that both variants have.
std::vector<std::vector<Point>> paired_curves(const std::vector<RunData>& runs,
                                              const Summary& summary, size_t variant, size_t base) {
  std::vector<std::vector<Point>> curves;
  for (size_t i : summary.variants[variant].runs)
    for (size_t j : summary.variants[base].runs)
      if (summary.runs[i].seed == summary.runs[j].seed && !runs[i].train.empty() &&
          !runs[j].train.empty())
        curves.push_back(loss_difference(runs[i], runs[j]));
  return curves;
}

Figure training_differences(const std::vector<RunData>& runs, const Summary& summary,
                            const Comparison& comparison) {
  const VariantResult& base = comparison.variants[comparison.base];
  Chart chart{.description = "Training loss minus that of " + base.name,
              .width = kWidth,
              .x = {.title = "training tokens",
                    .format = [](double value, double) { return format_short(value); }},
              .y = {.title = "training loss minus that of " + base.name +
                             " on the same batches, nats per token"}};
  double most = 0;
  for (const RunSummary& run : summary.runs) most = std::max(most, run.tokens);
  chart.x.range = {0, most};
  Range shown = {0, 0};
  for (const VariantResult& result : comparison.variants) {
    if (result.variant == base.variant) continue;
    const auto curves = paired_curves(runs, summary, result.variant, base.variant);
    const std::vector<Point> mean = mean_curve(curves);
    for (const Point& p : mean)
      if (p.x > kStart * most) shown.include(p.y);
    chart.series.push_back({.style = summary.variants[result.variant].style,
                            .points = mean,
                            .label = result.name + " (" + std::to_string(curves.size()) + ")"});
  }
  chart.y.range = padded(shown, Scale::Kind::linear, 0.15);
  return {render_chart(chart),
          "Training loss minus that of " + base.name +
              " at the same step of the same seed, on the same batches: moving average over 5 % of "
              "the logged values, mean over seeds (their number in brackets). The first tenth of "
              "the training may lie outside the frame. Below 0: ahead of " +
              base.name + ".",
          "training_differences"};
}

}  // namespace

std::vector<Figure> comparison_figures(const std::vector<RunData>& runs, const Summary& summary,
                                       const Comparison& comparison,
                                       const std::vector<Reference>& references) {
  const std::vector<Row> rows = rows_of(summary, comparison, references);
  if (rows.empty() || !comparison.over_seeds()) return {};
  return {{draw_forest(rows, comparison.variants[comparison.base].name),
           caption_of(rows, comparison), "paired_differences"},
          training_differences(runs, summary, comparison)};
}

}  // namespace kla::report
