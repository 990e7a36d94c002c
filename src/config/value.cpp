#include "config/value.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>

#include "config/clean_text.h"
#include "config/load.h"
#include "config/number.h"
#include "config/suggest.h"

namespace kla {
namespace {

std::map<std::string, std::vector<Choice>>& registry() {
  static std::map<std::string, std::vector<Choice>> choices;
  return choices;
}

// Nothing if the value was taken, else a note on what is wrong with it, which may be empty.
using Problem = std::optional<std::string>;

Problem convert(const Field&, const YamlNode& node, bool& value) {
  if (!node.quoted && (node.text == "true" || node.text == "false")) {
    value = node.text == "true";
    return {};
  }
  std::string lower = node.text;
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const bool yes =
      lower == "yes" || lower == "on" || lower == "y" || lower == "true" || lower == "1";
  const bool no =
      lower == "no" || lower == "off" || lower == "n" || lower == "false" || lower == "0";
  return Problem(yes ? "write true" : no ? "write false" : "");
}

template <class Number>
Problem convert_number(const Field& field, const YamlNode& node, Number& value) {
  if (node.quoted) return Problem("quotes make it text: write it without them");
  Number read{};
  const std::string problem = read_number(node.text, read);
  if (!problem.empty()) return problem;
  const auto x = static_cast<double>(read);
  const Traits& t = field.traits;
  if (x < t.min || x > t.max || (t.above_min && x == t.min) || (t.below_max && x == t.max))
    return Problem("");
  value = read;
  return {};
}
Problem convert(const Field& field, const YamlNode& node, int64_t& value) {
  return convert_number(field, node, value);
}
Problem convert(const Field& field, const YamlNode& node, uint64_t& value) {
  return convert_number(field, node, value);
}
Problem convert(const Field& field, const YamlNode& node, double& value) {
  return convert_number(field, node, value);
}

std::vector<Choice> all_choices(const Field& field) {
  const auto registered = registry().find(field.path);
  if (registered != registry().end()) return registered->second;
  std::vector<Choice> fixed;
  for (const char* name : field.traits.choices) fixed.push_back({name, {}});
  return fixed;
}

bool looks_like(Words words, const std::string& text) {
  const auto word = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; };
  const auto file = [&](char c) { return word(c) || c == '.' || c == '-'; };
  switch (words) {
    case Words::any:
      return true;
    case Words::identifier:
      return !text.empty() && !(text[0] >= '0' && text[0] <= '9') &&
             std::all_of(text.begin(), text.end(), word);
    case Words::file_name:
      return !text.empty() && text[0] != '.' && text.size() <= 200 &&
             std::all_of(text.begin(), text.end(), file);
  }
  return true;
}

Problem convert(const Field& field, const YamlNode& node, std::string& value) {
  if (find_unclean(node.text) != std::string::npos ||
      node.text.find_first_of("\r\n\t") != std::string::npos)
    return Problem("it holds a line break, a tab or a control character");
  const std::vector<Choice> choices = all_choices(field);
  std::vector<std::string> names;
  for (const Choice& choice : choices) {
    names.push_back(choice.name);
    const auto& aliases = choice.aliases;
    if (node.text == choice.name ||
        std::find(aliases.begin(), aliases.end(), node.text) != aliases.end()) {
      value = choice.name;
      return {};
    }
  }
  if (!choices.empty()) return Problem(did_you_mean(nearest(node.text, names)));
  if (!looks_like(field.traits.words, node.text)) return Problem("");
  value = node.text;
  return {};
}

std::string got(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::null:
      return "nothing";
    case YamlNode::Kind::list:
      return "a list";
    case YamlNode::Kind::map:
      return "a section";
    case YamlNode::Kind::scalar:
      break;
  }
  return shown(node.text);
}

struct Assignment {
  const Field& field;
  const YamlNode& node;
  const SourceText& source;
  Diagnostics& diagnostics;

  bool report(const YamlNode& at, const std::string& note) const {
    diagnostics.error(origin_of(source, at),
                      "'" + field.path + "' expects " + expectation(field) + ", got " + got(at),
                      note);
    return false;
  }

  template <class T>
  bool one(const YamlNode& from, T& value) const {
    if (from.kind != YamlNode::Kind::scalar)
      return report(from, from.kind == YamlNode::Kind::null
                              ? "write \"\" for empty text, or leave the key out"
                              : "");
    const Problem problem = convert(field, from, value);
    return problem ? report(from, *problem) : true;
  }

  template <class T>
  bool operator()(T* value) const {
    return one(node, *value);
  }
  template <class T>
  bool operator()(std::vector<T>* value) const {
    if (node.kind != YamlNode::Kind::list)
      return report(node, node.kind == YamlNode::Kind::scalar
                              ? "write [" + node.text.substr(0, bytes_of(node.text, 60)) + "]"
                              : "");
    std::vector<T> read(node.values.size());
    bool good = true;
    for (size_t i = 0; i < read.size(); ++i) good &= one(node.values[i], read[i]);
    if (field.traits.count != 0 && read.size() != field.traits.count)
      good = report(node, "it has " + std::to_string(read.size()) + " elements");
    if (good) *value = std::move(read);
    return good;
  }
};

std::string spell_one(bool value) {
  return value ? "true" : "false";
}
std::string spell_one(int64_t value) {
  return std::to_string(value);
}
std::string spell_one(uint64_t value) {
  return std::to_string(value);
}
std::string spell_one(double value) {
  char buffer[40];
  std::string text(buffer, std::to_chars(buffer, buffer + sizeof(buffer), value).ptr);
  const size_t zero = text.find("e-0");  // 1e-04, the shortest that reads back, as 1e-4
  return zero == std::string::npos ? text : text.erase(zero + 2, 1);
}
std::string spell_one(const std::string& value) {
  const auto plain = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '.' || c == '/' ||
           c == '-';
  };
  const bool special = value.empty() || value[0] == '-' || value[0] == '.' || value == "null" ||
                       value == "Null" || value == "NULL";
  if (!special && std::all_of(value.begin(), value.end(), plain)) return value;
  std::string out = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}
template <class T>
std::string spell_one(const std::vector<T>& values) {
  std::string out;
  for (const T& value : values) out += (out.empty() ? "" : ", ") + spell_one(value);
  return "[" + out + "]";
}

std::string kind_of(const bool*) {
  return "true or false";
}
std::string kind_of(const int64_t*) {
  return "a whole number";
}
std::string kind_of(const uint64_t*) {
  return "a whole number >= 0";
}
std::string kind_of(const double*) {
  return "a number";
}
std::string kind_of(const std::string*) {
  return "text";
}

std::string range_of(const Traits& t) {
  const bool low = std::isfinite(t.min), high = std::isfinite(t.max);
  if (low && high && t.min == t.max) return "= " + spell_one(t.min);
  if (low && high)
    return std::string("in ") + (t.above_min ? "(" : "[") + spell_one(t.min) + ", " +
           spell_one(t.max) + (t.below_max ? ")" : "]");
  if (low) return (t.above_min ? "> " : ">= ") + spell_one(t.min);
  return high ? (t.below_max ? "< " : "<= ") + spell_one(t.max) : "";
}

std::string element_expectation(const Field& field, const std::string& kind) {
  const std::vector<std::string> choices = choices_of(field);
  if (!choices.empty()) {
    std::string names;
    for (const std::string& name : choices) names += (names.empty() ? "" : ", ") + name;
    return choices.size() == 1 ? "'" + names + "'" : "one of " + names;
  }
  if (kind == "text" && field.traits.words == Words::identifier) return "a name";
  if (kind == "text" && field.traits.words == Words::file_name)
    return "a name of letters, digits, '.', '_' and '-', not beginning with '.'";
  const std::string unit = field.traits.unit, range = range_of(field.traits);
  return kind + (unit.empty() ? "" : " of " + unit) + (range.empty() ? "" : " " + range);
}

template <class T>
std::string expectation_of(const Field& field, const T* value) {
  return element_expectation(field, kind_of(value));
}
template <class T>
std::string expectation_of(const Field& field, const std::vector<T>*) {
  const size_t n = field.traits.count;
  return "a list of " + (n == 0 ? "values" : std::to_string(n) + " values") + ", each " +
         element_expectation(field, kind_of(static_cast<const T*>(nullptr)));
}

template <class Number>
bool empty(const Number* value) {
  return *value == 0;
}
bool empty(const bool*) {
  return false;
}
bool empty(const std::string* value) {
  return value->empty();
}
template <class T>
bool empty(const std::vector<T>* value) {
  return value->empty();
}

}  // namespace

void register_choices(const std::string& path, std::vector<Choice> choices) {
  registry()[path] = std::move(choices);
}

std::vector<std::string> choices_of(const Field& field) {
  std::vector<std::string> names;
  for (const Choice& choice : all_choices(field)) names.push_back(choice.name);
  return names;
}

bool assign(const Field& field, const YamlNode& node, const SourceText& source,
            Diagnostics& diagnostics) {
  return std::visit(Assignment{field, node, source, diagnostics}, field.slot);
}

std::string spell(const Slot& slot) {
  return std::visit([](const auto* value) { return spell_one(*value); }, slot);
}

std::string expectation(const Field& field) {
  return std::visit([&](const auto* value) { return expectation_of(field, value); }, field.slot);
}

bool is_empty(const Slot& slot) {
  return std::visit([](const auto* value) { return empty(value); }, slot);
}

}  // namespace kla
