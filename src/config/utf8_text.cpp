#include "config/utf8_text.h"

#include <algorithm>
#include <cstdint>

namespace kla {
namespace {

// Bytes of the valid sequence that starts at `at` and its code point; 0 if there is none.
size_t decode(std::string_view text, size_t at, uint32_t& code) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[at + i]); };
  const uint8_t lead = byte(0);
  const size_t n = lead < 0x80 ? 1 : lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC2 ? 2 : 0;
  if (n == 0 || lead > 0xF4 || at + n > text.size()) return 0;
  code = n == 1 ? lead : lead & (0xFFu >> (n + 1));
  for (size_t i = 1; i < n; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
    code = code << 6 | (byte(i) & 0x3Fu);
  }
  const bool overlong = (n == 3 && code < 0x800) || (n == 4 && code < 0x10000);
  const bool surrogate = code >= 0xD800 && code < 0xE000;
  return overlong || surrogate || code > 0x10FFFF ? 0 : n;
}

bool control(uint32_t code) {
  return code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0xFEFF || code == 0x2028 ||
         code == 0x2029;
}

bool continuation(char c) {
  return (static_cast<uint8_t>(c) & 0xC0) == 0x80;
}

}  // namespace

size_t find_unclean(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    uint32_t code = 0;
    const size_t n = decode(text, at, code);
    if (n == 0) return at;
    const bool line_end = code == '\r' && at + 1 < text.size() && text[at + 1] == '\n';
    if (control(code) && code != '\n' && code != '\t' && !line_end) return at;
    at += n;
  }
  return std::string_view::npos;
}

size_t count_characters(std::string_view text) {
  return text.size() - static_cast<size_t>(std::count_if(text.begin(), text.end(), continuation));
}

size_t bytes_of(std::string_view text, size_t characters) {
  size_t at = 0;
  for (; characters > 0 && at < text.size(); --characters)
    for (++at; at < text.size() && continuation(text[at]);) ++at;
  return at;
}

std::string displayable(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    uint32_t code = 0;
    const size_t n = decode(text, at, code);
    if (code == '\t') {
      out += ' ';
    } else if (n == 0 || control(code)) {
      out += '?';
    } else {
      out += text.substr(at, n);
    }
    at += std::max<size_t>(n, 1);
  }
  return out;
}

std::string shown(std::string_view text) {
  constexpr size_t kMost = 60;
  const std::string_view head = text.substr(0, bytes_of(text, kMost));
  return "'" + displayable(head) + (head.size() < text.size() ? "...'" : "'");
}

}  // namespace kla
