#include "report/svg.h"

#include <algorithm>
#include <cmath>

#include "report/markup.h"
#include "report/svg_parts.h"

namespace kla::report {
namespace {

using namespace svg_parts;

constexpr struct { double left = 52, top = 30, bottom = 40; } kMargin;  // pixels
constexpr double kLabelGap = 17;  // between two labels at the line ends
constexpr double kSwatch = 24;    // length of the sample beside a label
constexpr double kLeader = 14;    // from the end of a line to its sample

// The area inside the axes, and the scales that map into it.
struct Plot {
  double left, right, top, bottom;
  Scale x, y;
  bool visible(const Point& p) const {
    return std::isfinite(p.y) && std::isfinite(y.pixel(p.y)) && std::isfinite(x.pixel(p.x));
  }
};

double label_width(const Chart& chart) {
  size_t longest = 0;
  for (const Series& series : chart.series) {
    const auto characters = std::count_if(series.label.begin(), series.label.end(),
                                          [](char c) { return (c & 0xC0) != 0x80; });
    longest = std::max(longest, static_cast<size_t>(characters));
  }
  return longest == 0 ? 0 : kLeader + kSwatch + 10 + 6.8 * static_cast<double>(longest);
}

Range data_range(const Chart& chart, bool of_x) {
  const Scale::Kind kind = of_x ? chart.x.kind : chart.y.kind;
  auto fits = [kind](double value) { return kind == Scale::Kind::linear || value > 0; };
  Range range = kEmptyRange;
  for (const Series& series : chart.series) {
    for (const Point& p : series.points) {
      const double value = of_x ? p.x : p.y;
      if (std::isfinite(p.y) && fits(value)) range.include(value);
    }
    for (const std::vector<Range>* ranges : {&series.whiskers, &series.band})
      for (const Range& r : *ranges) {
        if (of_x || !r.valid() || !fits(r.low)) continue;
        range.include(r.low);
        range.include(r.high);
      }
  }
  return range;
}

Plot make_plot(const Chart& chart, Range x, Range y) {
  const double left = kMargin.left, right = chart.width - std::max(16.0, label_width(chart));
  const double top = kMargin.top, bottom = chart.height - kMargin.bottom;
  return {left,
          right,
          top,
          bottom,
          Scale(chart.x.kind, x, left, right),
          Scale(chart.y.kind, y, bottom, top)};
}

std::vector<double> ticks_of(const Axis& axis, const Scale& scale, double pixels, double spacing) {
  if (axis.ticks.empty()) return scale.ticks(static_cast<int>(pixels / spacing));
  std::vector<double> kept;  // given ones, as far as they do not run into one another
  for (double tick : axis.ticks)
    if (kept.empty() || std::abs(scale.pixel(tick) - scale.pixel(kept.back())) > spacing / 2)
      kept.push_back(tick);
  return kept;
}

double step_of(const std::vector<double>& ticks) {
  return ticks.size() > 1 ? ticks[1] - ticks[0]
                          : std::max(std::abs(ticks.empty() ? 1 : ticks[0]), 1e-9);
}

std::string draw_axes(const Chart& chart, const Plot& plot) {
  std::string out;
  const std::vector<double> ys = ticks_of(chart.y, plot.y, plot.bottom - plot.top, 42);
  for (double tick : ys) {
    const double y = plot.y.pixel(tick);
    out += line(plot.left, y, plot.right, y, {{"class", "grid"}});
    out += text_at(plot.left - 8, y + 4, chart.y.format(tick, step_of(ys)), "tick end");
  }
  const std::vector<double> xs = ticks_of(chart.x, plot.x, plot.right - plot.left, 72);
  for (double tick : xs) {
    const double x = plot.x.pixel(tick);
    out += line(x, plot.bottom, x, plot.bottom + 5, {{"class", "axis"}});
    out += text_at(x, plot.bottom + 18, chart.x.format(tick, step_of(xs)), "tick middle");
  }
  out += line(plot.left, plot.bottom, plot.right, plot.bottom, {{"class", "axis"}});
  out += text_at(4, 14, chart.y.title, "title");
  out += text_at(plot.right, plot.bottom + 34, chart.x.title, "tick end");
  for (const ReferenceLine& reference : chart.references) {
    const double x = plot.x.pixel(reference.x);
    if (!(x >= plot.left && x <= plot.right)) continue;
    out += line(x, plot.top, x, plot.bottom, {{"class", "reference"}});
    out += text_at(x + 5, plot.top + 9, reference.label, "tick");
  }
  return out;
}

// Down-sampled to two points a pixel column.
std::string draw_line(const Series& series, const Plot& plot) {
  const bool pale = series.look == Series::Look::pale_line;
  const char* style_class = pale                                     ? "pale"
                            : series.look == Series::Look::thin_line ? "thin"
                                                                     : "curve";
  std::string path;
  bool pen_down = false;
  const auto column = [&](double x) { return static_cast<int64_t>(std::floor(plot.x.pixel(x))); };
  for (const Point& p : reduce_to_columns(series.points, column)) {
    const double x = plot.x.pixel(p.x);
    if (!plot.visible(p) || x < plot.left - 0.5 || x > plot.right + 0.5) {
      pen_down = false;
      continue;
    }
    const double y = plot.y.pixel(p.y);
    path += (pen_down ? "L" : "M") + number(x + series.shift) + " " + number(y);
    pen_down = true;
  }
  if (path.empty()) return "";
  Attributes attributes = pale ? Attributes{{"stroke", series.style.colour}} : stroke(series.style);
  attributes.push_back({"class", style_class});
  attributes.push_back({"d", path});
  return empty_element("path", attributes);
}

// The band as closed outlines, one for each stretch without a gap: its upper edge and back.
std::string draw_band(const Series& series, const Plot& plot) {
  std::string path, upper, lower;
  const auto close = [&] {
    if (!upper.empty()) path += "M" + upper.substr(1) + lower + "Z";
    upper = lower = "";
  };
  for (size_t i = 0; i < series.band.size(); ++i) {
    const Range& r = series.band[i];
    const double x = series.points[i].x;
    if (!r.valid() || !plot.visible({x, r.low}) || !plot.visible({x, r.high})) {
      close();
      continue;
    }
    upper += "L" + number(plot.x.pixel(x)) + " " + number(plot.y.pixel(r.high));
    lower = "L" + number(plot.x.pixel(x)) + " " + number(plot.y.pixel(r.low)) + lower;
  }
  close();
  if (path.empty()) return "";
  return empty_element("path", {{"fill", series.style.colour}, {"class", "band"}, {"d", path}});
}

std::string draw_markers(const Series& series, const Plot& plot) {
  std::string out;
  for (size_t i = 0; i < series.points.size(); ++i) {
    const Point& p = series.points[i];
    if (!plot.visible(p)) continue;
    const double x = plot.x.pixel(p.x) + series.shift;
    if (i < series.whiskers.size() && series.whiskers[i].valid()) {
      const double low = plot.y.pixel(series.whiskers[i].low);
      const double high = plot.y.pixel(series.whiskers[i].high);
      const Attributes ink = {{"stroke", series.style.colour}, {"class", "whisker"}};
      out += line(x, low, x, high, ink) + line(x - 4, low, x + 4, low, ink) +
             line(x - 4, high, x + 4, high, ink);
    }
    out += marker_at(x, plot.y.pixel(p.y), series.style, series.hollow);
  }
  const std::string hint = series.hint.empty() ? "" : text_element("title", series.hint);
  return element("g", hint + out);
}

// All lines, cut at the edges of the plot (an inner <svg> clips; a clip path would need an id).
std::string draw_lines(const Chart& chart, const Plot& plot) {
  std::string lines;
  for (const Series& series : chart.series) lines += draw_band(series, plot);
  for (const Series& series : chart.series)
    if (series.look != Series::Look::markers) lines += draw_line(series, plot);
  const std::string x = number(plot.left), y = number(plot.top - 2);
  const std::string w = number(plot.right - plot.left), h = number(plot.bottom - plot.top + 4);
  return element("svg", lines,
                 {{"x", x},
                  {"y", y},
                  {"width", w},
                  {"height", h},
                  {"viewBox", x + " " + y + " " + w + " " + h}});
}

struct EndLabel {
  const Series* series;
  double y;      // of the end of the line
  double place;  // of the label
};

// Moves labels apart, as little as keeps them kLabelGap from one another and inside the chart.
void spread(std::vector<EndLabel>& labels, double top, double bottom) {
  std::sort(labels.begin(), labels.end(),
            [](const EndLabel& a, const EndLabel& b) { return a.y < b.y; });
  double next = top;
  for (EndLabel& label : labels) {
    label.place = std::max(label.y, next);
    next = label.place + kLabelGap;
  }
  double limit = bottom;
  for (auto label = labels.rbegin(); label != labels.rend(); ++label) {
    label->place = std::min(label->place, limit);
    limit = label->place - kLabelGap;
  }
}

std::string draw_labels(const Chart& chart, const Plot& plot) {
  std::vector<EndLabel> labels;
  for (const Series& series : chart.series) {
    if (series.label.empty()) continue;
    const auto last = std::find_if(series.points.rbegin(), series.points.rend(),
                                   [&](const Point& p) { return plot.visible(p); });
    if (last == series.points.rend()) continue;
    const double y = std::clamp(plot.y.pixel(last->y), plot.top, plot.bottom);
    labels.push_back({&series, y, y});
  }
  spread(labels, plot.top, plot.bottom + kMargin.bottom - 8);
  std::string out;
  for (const EndLabel& label : labels) {
    const double x = plot.right + kLeader;
    const LineStyle& style = label.series->style;
    out += line(plot.right, label.y, x, label.place, {{"class", "leader"}});
    Attributes ink = stroke(style);
    ink.push_back({"class", "curve"});
    out += line(x, label.place, x + kSwatch, label.place, ink);
    if (label.series->look == Series::Look::line_and_markers)
      out += marker_at(x + kSwatch / 2, label.place, style, label.series->hollow);
    out += text_at(x + kSwatch + 5, label.place + 4, label.series->label, "label");
  }
  return out;
}

}  // namespace

std::string render_chart(const Chart& chart) {
  Range x = chart.x.range.valid() ? chart.x.range : data_range(chart, true);
  Range y = chart.y.range.valid() ? chart.y.range : data_range(chart, false);
  if (!x.valid() || !y.valid())
    return svg(chart.width, 60, chart.description,
               text_at(4, 14, chart.y.title, "title") + text_at(4, 40, "no data", "tick"));
  const bool given_x = chart.x.range.valid() && x.low < x.high;
  const bool given_y = chart.y.range.valid() && y.low < y.high;
  const double margin = chart.x.kind == Scale::Kind::linear ? 0 : 0.04;
  x = given_x ? x : padded(x, chart.x.kind, margin);
  y = given_y ? y : padded(y, chart.y.kind, 0.05);
  const Plot plot = make_plot(chart, x, y);
  std::string content = draw_axes(chart, plot) + draw_lines(chart, plot);
  for (const Series& series : chart.series)
    if (series.look == Series::Look::markers || series.look == Series::Look::line_and_markers)
      content += draw_markers(series, plot);
  return svg(chart.width, chart.height, chart.description, content + draw_labels(chart, plot));
}

std::string render_swatch(const LineStyle& style) {
  Attributes ink = stroke(style);
  ink.push_back({"class", "curve"});
  return element("svg", line(0, 6, 30, 6, ink) + marker_at(15, 6, style, false),
                 {{"viewBox", "0 0 30 12"},
                  {"width", "30"},
                  {"height", "12"},
                  {"class", "swatch"},
                  {"aria-hidden", "true"}});
}

}  // namespace kla::report
