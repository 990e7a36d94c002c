#include "config/clean_text.h"

#include <algorithm>

namespace kla {
namespace {

bool control(uint32_t code) {
  return code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0xFEFF || code == 0x2028 ||
         code == 0x2029;
}

}  // namespace

size_t find_unclean(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const auto [bytes, code] = first_character(text.substr(at));
    if (bytes == 0) return at;
    const bool line_end = code == '\r' && at + 1 < text.size() && text[at + 1] == '\n';
    if (control(code) && code != '\n' && code != '\t' && !line_end) return at;
    at += bytes;
  }
  return std::string_view::npos;
}

std::string displayable(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const auto [bytes, code] = first_character(text.substr(at));
    if (code == '\t') {
      out += ' ';
    } else if (bytes == 0 || control(code)) {
      out += '?';
    } else {
      out += text.substr(at, bytes);
    }
    at += std::max<size_t>(bytes, 1);
  }
  return out;
}

std::string shown(std::string_view text) {
  constexpr size_t kMost = 60;
  const std::string_view head = text.substr(0, bytes_of(text, kMost));
  return "'" + displayable(head) + (head.size() < text.size() ? "...'" : "'");
}

}  // namespace kla
