// Checks of config text: nothing invalid and no control character gets past the reader, so
// messages may repeat what a file says without moving a terminal's cursor.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "core/utf8.h"

namespace kla {

// Byte offset of the first invalid sequence or control character (a line feed, a tab, and a
// carriage return before a line feed are none); npos if the text is clean.
size_t find_unclean(std::string_view text);
// For display on one line: what find_unclean() would stop at becomes '?', tabs become spaces.
std::string displayable(std::string_view text);
// The same in quotes, cut if it is long: 'text'.
std::string shown(std::string_view text);

}  // namespace kla
