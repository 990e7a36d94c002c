// One field of one JSON object, without building the object: what a .jsonl corpus needs. Depth is
// capped, so a hostile line costs its own length and no more.
#pragma once

#include <string>
#include <string_view>

namespace kla {

enum class JsonLine { ok, malformed, missing_field };

// Puts the string at the top-level key `field` of the object in `line` into `text`.
JsonLine read_json_field(std::string_view line, const std::string& field, std::string& text);

}  // namespace kla
