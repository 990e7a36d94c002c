// The grammar of numbers in configs: digits with single '_' between them, a fraction, an exponent
// or one of k, M, B (10^3, 10^6, 10^9). A whole number may be spelt in any of these ways as long as
// it is whole. No octal, no hex, no inf or nan.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace kla {

// Each returns what is wrong with the text; empty if nothing is.
std::string read_number(std::string_view text, double& value);
std::string read_number(std::string_view text, int64_t& value);
std::string read_number(std::string_view text, uint64_t& value);

}  // namespace kla
