// Line charts as inline SVG: axes with units, ticks at round numbers, lines and markers, error
// bars, and a name at the end of each line instead of a legend.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "report/scale.h"
#include "report/statistics.h"

namespace kla::report {

enum class Marker { circle, square, triangle, diamond };

struct LineStyle {
  std::string colour = {};  // "#4E79A7"
  std::string dash = {};    // SVG dash pattern; empty: solid
  Marker marker = Marker::circle;
};

struct Series {
  LineStyle style = {};
  std::vector<Point> points = {};    // x ascending
  std::vector<Range> whiskers = {};  // one a point, or empty; an invalid range draws none
  std::vector<Range> band = {};      // filled, one a point, or empty; an invalid range is a gap
  std::string label = {};            // at the end of the line; empty: none
  std::string hint = {};             // shown by the browser over the markers
  enum class Look { line, thin_line, pale_line, markers, line_and_markers } look = Look::line;
  bool hollow = false;  // markers
  double shift = 0;     // pixels to the right, so that error bars at the same x stay apart
};

struct Axis {
  std::string title = {};  // with its unit
  Scale::Kind kind = Scale::Kind::linear;
  Range range = kEmptyRange;  // empty: from the data
  std::function<std::string(double value, double step)> format = format_tick;
  std::vector<double> ticks = {};  // empty: round numbers
};

struct ReferenceLine {
  double x = 0;
  std::string label = {};
};

struct Chart {
  std::string description = {};  // for who cannot see it
  int width = 520, height = 320;
  Axis x = {}, y = {};
  std::vector<Series> series = {};
  std::vector<ReferenceLine> references = {};
};

// A series of a chart without any finite point is left out; a chart without any series says "no
// data".
std::string render_chart(const Chart& chart);

// The line and marker of a style, for tables.
std::string render_swatch(const LineStyle& style);

}  // namespace kla::report
