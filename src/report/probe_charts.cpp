#include "report/probe_charts.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "report/markup.h"
#include "report/svg.h"

namespace kla::report {
namespace {

constexpr size_t kMostRuns = 3;     // bands of more cover one another
constexpr size_t kMostPoints = 90;  // of a band in a panel of this width
constexpr int kPanelWidth = 245, kPanelHeight = 160;

struct Quantity {
  const char* name;     // in the file
  const char* heading;  // with its unit
  const char* meaning;
  Scale::Kind scale;
  bool with_most;  // the largest value matters, and has a line of its own
};

constexpr Scale::Kind kLinear = Scale::Kind::linear, kLog = Scale::Kind::log10;

// In the order of the page.
constexpr Quantity kQuantities[] = {
    {"write_gain", "Write gain β|k|² (no unit)",
     "The state shrinks along the key by 1 minus this: stable between 0 and 2; 1 replaces what the "
     "state held for the key.",
     kLinear, true},
    {"decay", "Decay e^g of a token (no unit)", "What is left of the state after one token.",
     kLinear, false},
    {"half_life", "Half-life at that decay (tokens, log scale)",
     "Tokens after which half of the state is left, if every token decayed like this one.", kLog,
     false},
    {"key_norm", "Key norm |k| (no unit)", "After convolution and SiLU, before any normalisation.",
     kLinear, false},
    {"value_norm", "Value norm |v| (no unit)",
     "After convolution and SiLU, before any normalisation.", kLinear, false},
    {"key_cosine", "Cosine of successive keys (no unit)",
     "Of the keys of two tokens in a row of the same document.", kLinear, false},
    {"residual_before", "Residual |v − Sᵀk| before the write (units of v)",
     "What the decayed state gets wrong about the value it is asked for.", kLinear, false},
    {"residual_after", "Residual |v − Sᵀk| after the write (units of v)",
     "The same behind the write: |1 − β|k|²| times as much.", kLinear, false},
    {"state_norm", "State norm |S| (units of v / k, log scale)",
     "Frobenius norm at the ends of chunks of 64 tokens.", kLog, false},
    {"state_rank", "Effective rank of the state (directions)",
     "(Σσ²)² / Σσ⁴ over its singular values: how many directions carry it (Bartlett et al. 2020).",
     kLinear, false},
    {"inverse_max", "Largest entry of the intra-chunk inverse (no unit)",
     "max |T_ij| below the diagonal of (I + A)⁻¹ of a chunk; where all gains are below 1, so is "
     "this.",
     kLinear, true}};

struct Probed {
  const RunData* run;
  const Variant* variant;
};

std::vector<Probed> drawn_runs(const std::vector<RunData>& runs, const Summary& summary) {
  std::vector<Probed> drawn;
  for (const Variant& variant : summary.variants) {
    const auto first = std::find_if(variant.runs.begin(), variant.runs.end(),
                                    [&](size_t i) { return !runs[i].probes.empty(); });
    if (first != variant.runs.end() && drawn.size() < kMostRuns)
      drawn.push_back({&runs[*first], &variant});
  }
  return drawn;
}

// The values of one quantity in one layer over training.
struct Track {
  std::vector<double> tokens;
  std::vector<ProbeValues> values;
};

Track track_of(const RunData& run, int64_t layer, const std::string& name) {
  Track all;
  for (const ProbeRow& row : run.probes)
    if (row.layer == layer)
      for (const ProbeValues& values : row.values)
        if (values.name == name) {
          all.tokens.push_back(row.tokens);
          all.values.push_back(values);
        }
  const size_t stride = (all.tokens.size() + kMostPoints - 1) / kMostPoints;
  if (stride <= 1) return all;
  Track thinned;  // the last one stays
  for (size_t i = (all.tokens.size() - 1) % stride; i < all.tokens.size(); i += stride) {
    thinned.tokens.push_back(all.tokens[i]);
    thinned.values.push_back(all.values[i]);
  }
  return thinned;
}

Range between(double low, double high) {
  return std::isfinite(low) && std::isfinite(high) ? Range{low, high} : kEmptyRange;
}

// Two bands, the median and, where it matters, the largest value.
void add_track(Chart& chart, const Track& track, const LineStyle& style, bool with_most) {
  Series outer{.style = style}, inner{.style = style}, most{.style = style};
  for (size_t i = 0; i < track.tokens.size(); ++i) {
    const ProbeValues& v = track.values[i];
    inner.points.push_back({track.tokens[i], v.median});
    outer.points.push_back({track.tokens[i], std::nan("")});
    most.points.push_back({track.tokens[i], v.most});
    outer.band.push_back(between(v.low, v.high));
    inner.band.push_back(between(v.lower, v.upper));
  }
  most.look = Series::Look::pale_line;
  chart.series.push_back(std::move(outer));
  chart.series.push_back(std::move(inner));
  if (with_most) chart.series.push_back(std::move(most));
}

Chart panel(const std::vector<Probed>& drawn, const Quantity& quantity, int64_t layer) {
  double last = 0;
  for (const Probed& p : drawn) last = std::max(last, p.run->probes.back().tokens);
  const std::string title = "layer " + std::to_string(layer);
  Chart chart{.description = std::string(quantity.heading) + ", " + title,
              .width = kPanelWidth,
              .height = kPanelHeight,
              .x = {.title = "training tokens",
                    .range = {0, last},
                    .format = [](double value, double) { return format_short(value); }},
              .y = {.title = title, .kind = quantity.scale}};
  if (quantity.scale != kLinear)
    chart.y.format = [](double value, double) { return format_short(value); };
  for (const Probed& p : drawn)
    add_track(chart, track_of(*p.run, layer, quantity.name), p.variant->style, quantity.with_most);
  return chart;
}

// All panels of a quantity share one range of y.
Range shared_range(const std::vector<Chart>& panels, Scale::Kind kind) {
  Range shared = kEmptyRange;
  const auto include = [&](double y) {
    if (std::isfinite(y) && (kind == kLinear || y > 0)) shared.include(y);
  };
  for (const Chart& chart : panels)
    for (const Series& series : chart.series) {
      for (const Point& p : series.points) include(p.y);
      for (const Range& r : series.band)
        if (r.valid()) {
          include(r.low);
          include(r.high);
        }
    }
  return shared.valid() ? padded(shared, kind, 0.05) : shared;
}

// About four in a low panel; powers of ten on a logarithmic axis that spans some.
std::vector<double> panel_ticks(Range y, Scale::Kind kind) {
  if (kind == kLinear) return Scale(kind, y, 0, 1).ticks(4);
  std::vector<double> ticks;
  for (double power = std::ceil(std::log10(y.low)); power <= std::log10(y.high); ++power)
    ticks.push_back(std::pow(10, power));
  return ticks.size() > 1 ? ticks : std::vector<double>();
}

std::string count_of(const std::vector<Probed>& drawn, const std::string& name) {
  Range counts = kEmptyRange;
  for (const Probed& p : drawn)
    for (const ProbeRow& row : p.run->probes)
      for (const ProbeValues& values : row.values)
        if (values.name == name) counts.include(values.count);
  if (!counts.valid()) return "";
  const std::string least = format_exact(static_cast<int64_t>(counts.low));
  const std::string most = format_exact(static_cast<int64_t>(counts.high));
  return "n = " + (least == most ? least : least + " to " + most) + " values a layer and probe.";
}

Figure quantity_figure(const std::vector<Probed>& drawn, const Quantity& quantity,
                       const std::set<int64_t>& layers) {
  std::vector<Chart> panels;
  for (int64_t layer : layers) panels.push_back(panel(drawn, quantity, layer));
  const Range y = shared_range(panels, quantity.scale);
  if (!y.valid()) return {};
  std::string content;
  for (Chart& chart : panels) {
    chart.y.range = y;
    chart.y.ticks = panel_ticks(y, quantity.scale);
    content += render_chart(chart);
  }
  return {text_element("h3", quantity.heading) + element("div", content, {{"class", "panels"}}),
          std::string(quantity.meaning) + " " + count_of(drawn, quantity.name)};
}

}  // namespace

std::vector<Figure> probe_figures(const std::vector<RunData>& runs, const Summary& summary) {
  const std::vector<Probed> drawn = drawn_runs(runs, summary);
  std::set<int64_t> layers;
  for (const Probed& p : drawn)
    for (const ProbeRow& row : p.run->probes) layers.insert(row.layer);
  std::vector<Figure> figures;
  for (const Quantity& quantity : kQuantities)
    if (Figure figure = quantity_figure(drawn, quantity, layers); !figure.svg.empty())
      figures.push_back(std::move(figure));
  return figures;
}

std::string probe_legend(const std::vector<RunData>& runs, const Summary& summary) {
  std::string names;
  for (const Probed& p : drawn_runs(runs, summary))
    names += " " + render_swatch(p.variant->style) + escape(p.variant->name);
  return element("p", names) +
         text_element(
             "p",
             "Line: median; bands: 25 to 75 % and 5 to 95 %; thin line, where there is "
             "one: the largest value. Each probe looks at up to 512 tokens of one sequence, "
             "all heads of a layer together (metrics/probes.jsonl has each head). Drawn is "
             "the first probed run of each variant, at most three variants; the panels of "
             "a figure share their axes.",
             {{"class", "quiet"}});
}

}  // namespace kla::report
