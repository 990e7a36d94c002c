// Pieces of the page that its sections are made of. All texts are escaped here; `content`, `head`
// and `rows` are markup already.
#pragma once

#include <string>
#include <vector>

#include "report/charts.h"

namespace kla::report {

std::string head_cell(const std::string& text, const std::string& unit = "", const char* css = "");
std::string cell(const std::string& text, const char* css = "");
std::string value_with_note(const std::string& value, const std::string& note);
std::string table(const std::string& head, const std::string& rows);
std::string paragraph(const std::string& text, const char* css = "quiet");
std::string interval(double low, double high, int decimals);  // "[1.20, 1.30]", "" if not known

// `css`: "figures", two in a row, or "figures whole".
std::string figures(const std::vector<Figure>& list,
                    const char* css = "figures");                      // "" if there are none
std::string section(const char* heading, const std::string& content);  // "" if it is empty

}  // namespace kla::report
