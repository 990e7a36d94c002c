// UTF-8 as the Unicode standard defines it: no overlong forms, no surrogates, at most U+10FFFF.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace kla {

struct Utf8Character {
  size_t bytes = 0;   // 0: the text does not begin with a valid sequence
  uint32_t code = 0;  // its code point
};
// The first character of a text that is not empty.
Utf8Character first_character(std::string_view text);

bool valid_utf8(std::string_view text);

// Of valid text: characters, bytes of the first `characters` of them, and the largest cut <=
// `limit` that does not fall inside one.
size_t count_characters(std::string_view text);
size_t bytes_of(std::string_view text, size_t characters);
size_t character_cut(std::string_view text, size_t limit);

}  // namespace kla
