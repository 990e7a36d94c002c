#include "report/charts.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>

#include "report/scale.h"
#include "report/statistics.h"
#include "report/svg.h"

namespace kla::report {
namespace {

using Field = double TrainRow::*;

constexpr size_t kLabelLength = 18;  // characters of a run's name at the end of its line
constexpr int kHeight = 300, kSmallHeight = 210;

std::vector<Point> curve(const RunData& run, Field field) {
  std::vector<Point> points;
  points.reserve(run.train.size());
  for (const TrainRow& row : run.train) points.push_back({row.tokens, row.*field});
  return points;
}

std::string shortened(const std::string& name) {
  if (name.size() <= kLabelLength) return name;
  size_t end = kLabelLength - 1;
  while (end > 0 && (name[end] & 0xC0) == 0x80) --end;  // not inside a UTF-8 character
  return name.substr(0, end) + "…";
}

const LineStyle& style_of(const Summary& summary, size_t run) {
  return summary.variants[summary.runs[run].variant].style;
}

// The name at the end of a line: a variant is named once, with the number of its runs and the mean
// of their values; `decimals` < 0 leaves the value out.
std::string end_label(const Summary& summary, size_t run, int decimals,
                      const std::function<double(const RunSummary&)>& value = {}) {
  const Variant& variant = summary.variants[summary.runs[run].variant];
  if (variant.runs.front() != run) return "";
  std::string label = shortened(variant.name);
  if (variant.runs.size() > 1) label += " (" + std::to_string(variant.runs.size()) + ")";
  if (decimals < 0) return label;
  double sum = 0;
  for (size_t i : variant.runs) sum += value(summary.runs[i]);
  return label + " " + format_fixed(sum / static_cast<double>(variant.runs.size()), decimals);
}

// A line for each variant: its run, or the mean of its runs over their thin lines.
void add_curves(Chart& chart, const Summary& summary, const std::vector<std::vector<Point>>& curves,
                const std::function<std::string(size_t run)>& label) {
  for (const Variant& variant : summary.variants) {
    std::vector<std::vector<Point>> seeds;
    for (size_t i : variant.runs) {
      seeds.push_back(curves[i]);
      if (variant.runs.size() > 1)
        chart.series.push_back({.style = variant.style,
                                .points = curves[i],
                                .hint = summary.runs[i].label,
                                .look = Series::Look::thin_line});
    }
    chart.series.push_back({.style = variant.style,
                            .points = mean_curve(seeds),
                            .label = label(variant.runs.front())});
  }
}

bool several_seeds(const Summary& summary) {
  return summary.variants.size() < summary.runs.size();
}

// Spreads the error bars of `runs` runs over up to 24 pixels.
double shift_of(size_t run, size_t runs) {
  const double count = static_cast<double>(runs);
  return std::min(8.0, 24 / count) * (static_cast<double>(run) - (count - 1) / 2);
}

std::string note_on_means(const Summary& summary) {
  return several_seeds(summary) ? " Thin lines: the seeds of a variant (their number in brackets); "
                                  "thick: their mean, as far as all of them go."
                                : "";
}

Axis token_axis(const Summary& summary) {
  double most = 0;
  for (const RunSummary& run : summary.runs) most = std::max(most, run.tokens);
  return {.title = "training tokens", .range = {0, most}, .format = [](double value, double) {
            return format_short(value);
          }};
}

std::string counts(const std::vector<RunData>& runs) {
  size_t least = runs.front().train.size(), most = least;
  for (const RunData& run : runs) {
    least = std::min(least, run.train.size());
    most = std::max(most, run.train.size());
  }
  const std::string high = format_exact(static_cast<int64_t>(most));
  return least == most ? high : format_exact(static_cast<int64_t>(least)) + " to " + high;
}

struct Smoothed {
  std::vector<Point> raw, average;
};

std::vector<Smoothed> smooth_losses(const std::vector<RunData>& runs) {
  std::vector<Smoothed> out;
  for (const RunData& run : runs) {
    Smoothed s{curve(run, &TrainRow::loss), {}};
    s.average = smoothed(s.raw);
    out.push_back(std::move(s));
  }
  return out;
}

void add_losses(Chart& chart, const std::vector<Smoothed>& losses, const Summary& summary,
                bool with_value) {
  std::vector<std::vector<Point>> averages;
  for (size_t i = 0; i < losses.size(); ++i) {
    averages.push_back(losses[i].average);
    if (!several_seeds(summary))
      chart.series.push_back({.style = style_of(summary, i),
                              .points = losses[i].raw,
                              .look = Series::Look::pale_line});
  }
  add_curves(chart, summary, averages, [&](size_t run) {
    return with_value ? end_label(summary, run, 3, &RunSummary::train_loss)
                      : end_label(summary, run, -1);
  });
}

Figure whole_loss(const std::vector<RunData>& runs, const std::vector<Smoothed>& losses,
                  const Summary& summary) {
  Chart chart{
      .description = "Training loss against tokens",
      .height = kHeight,
      .x = token_axis(summary),
      .y = {.title = "training loss, nats per token (log scale)", .kind = Scale::Kind::log10}};
  add_losses(chart, losses, summary, false);
  const std::string values = " a run, each the mean over all targets since the one before";
  const std::string caption =
      several_seeds(summary)
          ? "Training loss: moving average over 5 % of the logged values, n = " + counts(runs) +
                values + "."
          : "Training loss. Pale: the logged values, n = " + counts(runs) + values +
                "; line: their moving average over 5 % of the rows.";
  return {render_chart(chart), caption + note_on_means(summary), "training_loss"};
}

Figure second_half(const std::vector<Smoothed>& losses, const Summary& summary) {
  Chart chart{.description = "Training loss of the second half, enlarged",
              .height = kHeight,
              .x = token_axis(summary),
              .y = {.title = "training loss, nats per token"}};
  const double half = chart.x.range.high / 2;
  chart.x.range.low = half;
  Range seen = kEmptyRange;
  for (const Smoothed& s : losses)
    for (const Point& p : s.average)
      if (p.x >= half) seen.include(p.y);
  if (seen.valid()) chart.y.range = padded(seen, Scale::Kind::linear, 0.2);
  add_losses(chart, losses, summary, true);
  return {render_chart(chart),
          "The second half, enlarged; values beyond the frame are cut off. The number is the mean "
          "over the last 5 % of the tokens." +
              note_on_means(summary),
          "training_loss_second_half"};
}

int64_t most_targets(const RunData& run, int64_t length) {
  int64_t most = 0;
  for (const EvalRow& row : run.evals)
    if (row.protocol == "full" && row.length == length) most = std::max(most, row.targets);
  return most;
}

Range perplexity_interval(const EvalRow& row) {
  if (!std::isfinite(row.low) || !std::isfinite(row.high)) return kEmptyRange;
  return {std::exp(row.low), std::exp(row.high)};
}

void add_validation_curve(Chart& chart, const RunData& run, const Summary& summary, size_t i,
                          int64_t length, Range& part_of_set) {
  const int64_t most = most_targets(run, length);
  Series during{.style = style_of(summary, i),
                .hint = summary.runs[i].label + ", part of the validation set",
                .look = Series::Look::line_and_markers,
                .hollow = true};
  Series whole{
      .style = style_of(summary, i), .hint = summary.runs[i].label, .look = Series::Look::markers};
  for (const EvalRow& row : run.evals) {
    if (row.protocol != "full" || row.length != length || !std::isfinite(row.loss)) continue;
    const bool part = static_cast<double>(row.targets) < 0.99 * static_cast<double>(most);
    Series& series = part ? during : whole;
    series.points.push_back({row.tokens, std::exp(row.loss)});
    if (part)
      part_of_set.include(static_cast<double>(row.targets));
    else
      whole.whiskers.push_back(perplexity_interval(row));
  }
  if (during.points.empty())
    whole.look = Series::Look::line_and_markers;
  else
    whole.shift = shift_of(i, summary.runs.size());
  Series& last = whole.points.empty() ? during : whole;
  last.label = end_label(summary, i, 1, [](const RunSummary& r) {
    const EvalRow* row = headline(r);
    return row ? std::exp(row->loss) : std::nan("");
  });
  chart.series.push_back(std::move(during));
  chart.series.push_back(std::move(whole));
}

// The curves of a variant's seeds, thin, and their mean with markers: hollow ones on a part of the
// set, filled ones on all of it. `chart` has the seeds' own curves from `first` on.
void thin_out(Chart& chart, size_t first) {
  std::vector<std::vector<Point>> during, whole;
  for (size_t i = first; i < chart.series.size(); i += 2) {  // add_validation_curve adds two each
    during.push_back(chart.series[i].points);
    whole.push_back(chart.series[i + 1].points);
  }
  Series partial = chart.series[first], full = chart.series[first + 1];
  chart.series.resize(first);
  for (size_t i = 0; i < during.size(); ++i) {
    std::vector<Point> points = during[i];
    points.insert(points.end(), whole[i].begin(), whole[i].end());
    chart.series.push_back(
        {.style = partial.style, .points = points, .look = Series::Look::thin_line});
  }
  partial.points = mean_curve(during);
  full.points = mean_curve(whole);
  for (Series* series : {&partial, &full}) {
    series->whiskers.clear();
    series->shift = 0;
    series->look = Series::Look::line_and_markers;
    chart.series.push_back(*series);
  }
}

void add_variant(Chart& chart, const std::vector<RunData>& runs, const Summary& summary,
                 const Variant& variant, std::set<int64_t>& lengths, Range& part_of_set) {
  const size_t first = chart.series.size();
  for (size_t i : variant.runs) {
    const EvalRow* row = headline(summary.runs[i]);
    if (!row) continue;
    lengths.insert(row->length);
    add_validation_curve(chart, runs[i], summary, i, row->length, part_of_set);
  }
  if (chart.series.size() > first + 2) thin_out(chart, first);
}

Figure validation_curves(const std::vector<RunData>& runs, const Summary& summary) {
  Chart chart{.description = "Validation perplexity against tokens",
              .height = kHeight,
              .x = token_axis(summary),
              .y = {.title = "", .kind = Scale::Kind::log10}};
  chart.x.range.high *= 1.05;  // room for the last markers
  Range part_of_set = kEmptyRange;
  std::set<int64_t> lengths;
  for (const Variant& variant : summary.variants)
    add_variant(chart, runs, summary, variant, lengths, part_of_set);
  std::string contexts;
  for (int64_t length : lengths)
    contexts += (contexts.empty() ? "" : ", ") + format_context(static_cast<double>(length));
  chart.y.title = "validation perplexity, context " + contexts + " (log scale)";
  chart.y.format = [](double value, double) { return format_short(value); };
  std::string caption = "Validation perplexity during training. ";
  if (part_of_set.valid())
    caption += "Hollow: the first " + format_exact(static_cast<int64_t>(part_of_set.high)) +
               " targets; filled: ";
  caption += part_of_set.valid() ? "the most targets any evaluation of the run covered, "
                                 : "Bars: 95 % interval over documents, where known; ";
  if (part_of_set.valid()) caption += "with its 95 % interval over documents, where known; ";
  caption += "the counts are in the table below.";
  if (several_seeds(summary)) caption += " Thin lines: the seeds; markers: their mean.";
  return {render_chart(chart), caption, "validation_perplexity"};
}

Figure by_context(const Summary& summary) {
  Chart chart{.description = "Perplexity by context length",
              .height = kHeight,
              .x = {.title = "context length, tokens (log scale)",
                    .kind = Scale::Kind::log2,
                    .format = [](double value, double) { return format_context(value); }},
              .y = {.title = "validation perplexity"}};
  std::set<int64_t> lengths, trained;
  for (size_t i = 0; i < summary.runs.size(); ++i) {
    const RunSummary& run = summary.runs[i];
    Series series{
        .style = style_of(summary, i), .hint = run.label, .look = Series::Look::line_and_markers};
    for (const EvalRow& row : run.final) {
      lengths.insert(row.length);
      series.points.push_back({static_cast<double>(row.length), std::exp(row.loss)});
      series.whiskers.push_back(perplexity_interval(row));
    }
    if (run.final.empty()) continue;
    series.shift = shift_of(i, summary.runs.size());
    if (run.trained_length > 0) trained.insert(run.trained_length);
    series.label = end_label(summary, i, 1, [](const RunSummary& r) {
      return r.final.empty() ? std::nan("") : std::exp(r.final.back().loss);
    });
    chart.series.push_back(std::move(series));
  }
  if (lengths.size() < 2) return {};
  for (int64_t length : lengths) chart.x.ticks.push_back(static_cast<double>(length));
  for (int64_t length : trained)
    chart.references.push_back(
        {static_cast<double>(length), "trained at " + format_context(static_cast<double>(length))});
  return {render_chart(chart),
          "Perplexity by context length: every window starts from the empty state, every target "
          "counts once. Bars: 95 % interval over documents. The dotted line marks the length the "
          "models were trained with.",
          "perplexity_by_context"};
}

Figure optimizer_figure(const std::vector<RunData>& runs, const Summary& summary, Field field,
                        Axis y, const std::string& caption, const std::string& name) {
  Chart chart{
      .description = caption, .height = kSmallHeight, .x = token_axis(summary), .y = std::move(y)};
  std::vector<std::vector<Point>> curves;
  for (const RunData& run : runs) curves.push_back(curve(run, field));
  add_curves(chart, summary, curves, [&](size_t run) { return end_label(summary, run, -1); });
  return {render_chart(chart), caption + note_on_means(summary), name};
}

bool has_training(const std::vector<RunData>& runs) {
  return std::any_of(runs.begin(), runs.end(), [](const RunData& r) { return !r.train.empty(); });
}

}  // namespace

std::vector<Figure> training_figures(const std::vector<RunData>& runs, const Summary& summary) {
  if (!has_training(runs)) return {};
  const std::vector<Smoothed> losses = smooth_losses(runs);
  return {whole_loss(runs, losses, summary), second_half(losses, summary)};
}

std::vector<Figure> validation_figures(const std::vector<RunData>& runs, const Summary& summary) {
  const bool any = std::any_of(summary.runs.begin(), summary.runs.end(),
                               [](const RunSummary& run) { return headline(run) != nullptr; });
  if (!any) return {};
  std::vector<Figure> figures = {validation_curves(runs, summary)};
  if (Figure contexts = by_context(summary); !contexts.svg.empty()) figures.push_back(contexts);
  return figures;
}

std::vector<Figure> optimizer_figures(const std::vector<RunData>& runs, const Summary& summary) {
  if (!has_training(runs)) return {};
  const Axis rate{.title = "learning rate",
                  .format = [](double value, double) { return format_scientific(value); }};
  const Axis norm{.title = "gradient norm (log scale)",
                  .kind = Scale::Kind::log10,
                  .format = [](double value, double) { return format_short(value); }};
  return {optimizer_figure(runs, summary, &TrainRow::lr, rate, "Learning rate of each logged step.",
                           "learning_rate"),
          optimizer_figure(runs, summary, &TrainRow::grad_norm, norm,
                           "L2 norm of the whole gradient before clipping, at each logged step.",
                           "gradient_norm")};
}

}  // namespace kla::report
