#include "data/utf8.h"

#include <cstdint>
#include <cstring>

namespace kla {
namespace {

bool continuation(unsigned char c) {
  return (c & 0xC0) == 0x80;
}

// Bytes of the character at the start of text, 0 if it is not one.
size_t character_length(std::string_view text) {
  const auto at = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = at(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i)
    if (!continuation(at(i))) return 0;
  if ((lead == 0xE0 && at(1) < 0xA0) || (lead == 0xED && at(1) > 0x9F)) return 0;
  if ((lead == 0xF0 && at(1) < 0x90) || (lead == 0xF4 && at(1) > 0x8F)) return 0;
  return length;
}

}  // namespace

bool valid_utf8(std::string_view text) {
  while (!text.empty()) {
    uint64_t eight = ~uint64_t{0};
    if (text.size() >= sizeof(eight)) std::memcpy(&eight, text.data(), sizeof(eight));
    if ((eight & 0x8080808080808080u) == 0) {  // eight ASCII characters at once
      text.remove_prefix(sizeof(eight));
      continue;
    }
    const size_t length = character_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

size_t character_cut(std::string_view text, size_t limit) {
  if (limit >= text.size()) return text.size();
  while (limit > 0 && continuation(static_cast<unsigned char>(text[limit]))) --limit;
  return limit;
}

}  // namespace kla
