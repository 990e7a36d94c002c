#include "report/svg_parts.h"

#include "report/scale.h"

namespace kla::report::svg_parts {

std::string number(double pixels) {
  std::string text = format_fixed(pixels, 1);
  if (text.ends_with(".0")) text.resize(text.size() - 2);
  return text;
}

std::string text_at(double x, double y, const std::string& text, const char* style_class) {
  return text_element("text", text, {{"x", number(x)}, {"y", number(y)}, {"class", style_class}});
}

std::string line(double x1, double y1, double x2, double y2, const Attributes& attributes) {
  Attributes all = {{"x1", number(x1)}, {"y1", number(y1)}, {"x2", number(x2)}, {"y2", number(y2)}};
  all.insert(all.end(), attributes.begin(), attributes.end());
  return empty_element("line", all);
}

std::string marker_at(double x, double y, const LineStyle& style, bool hollow) {
  const std::string fill = hollow ? "#fff" : style.colour;
  Attributes paint = {{"fill", fill}, {"stroke", style.colour}, {"stroke-width", "1.5"}};
  auto polygon = [&](std::initializer_list<Point> corners) {
    std::string points;
    for (const Point& p : corners) points += number(x + p.x) + "," + number(y + p.y) + " ";
    points.pop_back();
    paint.insert(paint.begin(), {"points", points});
    return empty_element("polygon", paint);
  };
  switch (style.marker) {
    case Marker::square:
      return polygon({{-3.2, -3.2}, {3.2, -3.2}, {3.2, 3.2}, {-3.2, 3.2}});
    case Marker::triangle:
      return polygon({{0, -4.2}, {4, 3}, {-4, 3}});
    case Marker::diamond:
      return polygon({{0, -4.4}, {4.4, 0}, {0, 4.4}, {-4.4, 0}});
    case Marker::circle:
      break;
  }
  paint.insert(paint.begin(), {{"cx", number(x)}, {"cy", number(y)}, {"r", "3.4"}});
  return empty_element("circle", paint);
}

Attributes stroke(const LineStyle& style) {
  Attributes attributes = {{"stroke", style.colour}};
  if (!style.dash.empty()) attributes.push_back({"stroke-dasharray", style.dash});
  return attributes;
}

std::string svg(int width, int height, const std::string& description, const std::string& content) {
  const std::string w = std::to_string(width), h = std::to_string(height);
  return element("svg", content,
                 {{"xmlns", "http://www.w3.org/2000/svg"},
                  {"viewBox", "0 0 " + w + " " + h},
                  {"width", w},
                  {"height", h},
                  {"role", "img"},
                  {"aria-label", description}});
}

}  // namespace kla::report::svg_parts
