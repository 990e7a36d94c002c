// Did you mean: the nearest known word for one that is not known.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "config/schema.h"

namespace kla {

// Edits between two words: insert, delete, replace a letter, swap two neighbours.
size_t edit_distance(std::string_view a, std::string_view b);

// The candidates nearest to `word`, if near enough to be meant; several if they are equally near.
std::vector<std::string> nearest(std::string_view word, const std::vector<std::string>& candidates);

// Full paths that may be meant by the unknown key `name` in `section`.
std::vector<std::string> suggest_keys(const Schema& schema, const std::string& section,
                                      const std::string& name);

// "did you mean 'a'?", "did you mean 'a' or 'b'?", "" without candidates.
std::string did_you_mean(const std::vector<std::string>& candidates);

}  // namespace kla
