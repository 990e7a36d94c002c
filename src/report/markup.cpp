#include "report/markup.h"

#include <cstdint>
#include <string_view>

namespace kla::report {
namespace {

constexpr const char* kReplacement = "\xEF\xBF\xBD";  // U+FFFD

struct CodePoint {
  uint32_t value = 0;
  size_t bytes = 0;  // 0: not UTF-8
};

CodePoint decode(std::string_view text) {
  const auto first = static_cast<unsigned char>(text[0]);
  if (first < 0x80) return {first, 1};
  const size_t bytes = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : first >= 0xC0 ? 2 : 0;
  if (bytes == 0 || first >= 0xF8 || text.size() < bytes) return {};
  uint32_t value = first & (0x7Fu >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    const auto next = static_cast<unsigned char>(text[i]);
    if ((next & 0xC0) != 0x80) return {};
    value = value << 6 | (next & 0x3Fu);
  }
  static constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  return value < kSmallest[bytes] ? CodePoint{} : CodePoint{value, bytes};
}

bool allowed_in_xml(uint32_t c) {
  if (c < 0x20) return c == '\t' || c == '\n';
  return (c < 0x7F || c > 0x9F) && (c < 0xD800 || c > 0xDFFF) && c != 0xFFFE && c != 0xFFFF &&
         c <= 0x10FFFF;
}

std::string open_tag(const char* name, const Attributes& attributes) {
  std::string tag = std::string("<") + name;
  for (const auto& [key, value] : attributes)
    tag += std::string(" ") + key + "=\"" + escape(value) + "\"";
  return tag;
}

}  // namespace

std::string escape(const std::string& text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = decode(std::string_view(text).substr(i));
    switch (c.value) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        if (c.bytes > 0 && allowed_in_xml(c.value))
          out.append(text, i, c.bytes);
        else
          out += kReplacement;
    }
    i += c.bytes > 0 ? c.bytes : 1;
  }
  return out;
}

std::string element(const char* name, const std::string& content, const Attributes& attributes) {
  return open_tag(name, attributes) + ">" + content + "</" + name + ">";
}

std::string empty_element(const char* name, const Attributes& attributes) {
  return open_tag(name, attributes) + "/>";
}

std::string text_element(const char* name, const std::string& text, const Attributes& attributes) {
  return element(name, escape(text), attributes);
}

}  // namespace kla::report
