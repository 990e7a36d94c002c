#include "report/html_parts.h"

#include <cmath>

#include "report/markup.h"
#include "report/scale.h"

namespace kla::report {

std::string head_cell(const std::string& text, const std::string& unit, const char* css) {
  const std::string small = unit.empty() ? "" : text_element("small", unit);
  return element("th", escape(text) + small, {{"scope", "col"}, {"class", css}});
}

std::string cell(const std::string& text, const char* css) {
  return *css ? text_element("td", text, {{"class", css}}) : text_element("td", text);
}

std::string value_with_note(const std::string& value, const std::string& note) {
  return element("td", escape(value) + (note.empty() ? "" : " " + text_element("small", note)));
}

std::string table(const std::string& head, const std::string& rows) {
  const std::string content = element("thead", element("tr", head)) + element("tbody", rows);
  return element("div", element("table", content), {{"class", "wide"}});
}

std::string interval(double low, double high, int decimals) {
  if (!std::isfinite(low) || !std::isfinite(high)) return "";
  return "[" + format_fixed(low, decimals) + ", " + format_fixed(high, decimals) + "]";
}

std::string paragraph(const std::string& text, const char* css) {
  return text_element("p", text, {{"class", css}});
}

std::string figures(const std::vector<Figure>& list, const char* css) {
  if (list.empty()) return "";
  std::string content;
  for (const Figure& figure : list)
    content += element("figure", figure.svg + text_element("figcaption", figure.caption));
  return element("div", content, {{"class", css}});
}

std::string section(const char* heading, const std::string& content) {
  return content.empty() ? "" : element("section", text_element("h2", heading) + content);
}

}  // namespace kla::report
