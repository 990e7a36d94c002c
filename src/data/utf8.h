// UTF-8 as the Unicode standard defines it: no overlong forms, no surrogates, at most U+10FFFF.
#pragma once

#include <cstddef>
#include <string_view>

namespace kla {

bool valid_utf8(std::string_view text);

// The largest cut <= `limit` that does not fall inside a character of valid text.
size_t character_cut(std::string_view text, size_t limit);

}  // namespace kla
