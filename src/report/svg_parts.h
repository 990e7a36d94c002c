// Strokes that charts are drawn with; positions are pixels.
#pragma once

#include <string>

#include "report/markup.h"
#include "report/svg.h"

namespace kla::report::svg_parts {

std::string number(double pixels);  // one decimal, if it needs one
std::string text_at(double x, double y, const std::string& text, const char* style_class);
std::string line(double x1, double y1, double x2, double y2, const Attributes& attributes);
std::string marker_at(double x, double y, const LineStyle& style, bool hollow);
Attributes stroke(const LineStyle& style);
std::string svg(int width, int height, const std::string& description, const std::string& content);

}  // namespace kla::report::svg_parts
