#include "config/number.h"

#include <charconv>
#include <cstddef>
#include <limits>

namespace kla {
namespace {

bool digit(char c) {
  return c >= '0' && c <= '9';
}

// digits * 10^exponent
struct Decimal {
  bool negative = false;
  std::string digits;
  int exponent = 0;
};

// Takes digits with single '_' between them; false if there is none, or a '_' at an end.
bool take_digits(std::string_view& rest, std::string& digits) {
  size_t i = 0;
  for (; i < rest.size() && (digit(rest[i]) || rest[i] == '_'); ++i) {
    const bool inside = i > 0 && i + 1 < rest.size() && digit(rest[i - 1]) && digit(rest[i + 1]);
    if (rest[i] == '_' && !inside) return false;
    if (digit(rest[i])) digits += rest[i];
  }
  rest.remove_prefix(i);
  return i > 0;
}

bool take(std::string_view& rest, std::string_view any_of) {
  if (rest.empty() || any_of.find(rest[0]) == std::string_view::npos) return false;
  rest.remove_prefix(1);
  return true;
}

std::string read_exponent(std::string_view& rest, int& exponent) {
  const bool negative = !rest.empty() && rest[0] == '-';
  take(rest, "+-");
  std::string digits;
  if (!take_digits(rest, digits) || digits.size() > 4) return "the exponent is not a number";
  const int value = std::stoi(digits);
  exponent += negative ? -value : value;
  return "";
}

std::string read_decimal(std::string_view text, Decimal& out) {
  static const std::string usage = "numbers look like 2097152, 2_097_152, 1.5e-3, 15e9 or 15B";
  std::string_view rest = text;
  out.negative = !rest.empty() && rest[0] == '-';
  take(rest, "+-");
  const bool whole = take_digits(rest, out.digits);
  if (whole && out.digits.size() > 1 && out.digits[0] == '0')
    return "a leading zero is not allowed: write it without (this is not read as octal)";
  if (take(rest, ".")) {
    const size_t before = out.digits.size();
    if (!take_digits(rest, out.digits) && !(whole && (rest.empty() || rest[0] != '_')))
      return usage;
    out.exponent = static_cast<int>(before) - static_cast<int>(out.digits.size());
  } else if (!whole) {
    return usage;
  }
  if (take(rest, "eE")) {
    const std::string problem = read_exponent(rest, out.exponent);
    if (!problem.empty()) return problem;
  } else if (rest == "k" || rest == "M" || rest == "B") {
    out.exponent += rest == "k" ? 3 : rest == "M" ? 6 : 9;
    rest = {};
  }
  return rest.empty() ? "" : usage;
}

// |value| of a decimal that is whole.
std::string read_magnitude(std::string_view text, Decimal& decimal, uint64_t& value) {
  const std::string problem = read_decimal(text, decimal);
  if (!problem.empty()) return problem;
  std::string& digits = decimal.digits;
  for (; decimal.exponent < 0 && !digits.empty() && digits.back() == '0'; ++decimal.exponent)
    digits.pop_back();
  digits.erase(0, digits.find_first_not_of('0'));
  value = 0;
  if (digits.empty()) return "";
  if (decimal.exponent < 0) return "it is not a whole number";
  const std::string too_large = "it is too large for a 64-bit number";
  if (digits.size() + static_cast<size_t>(decimal.exponent) > 20) return too_large;
  digits.append(static_cast<size_t>(decimal.exponent), '0');
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  return result.ec == std::errc() ? "" : too_large;
}

}  // namespace

std::string read_number(std::string_view text, double& value) {
  Decimal decimal;
  const std::string problem = read_decimal(text, decimal);
  if (!problem.empty()) return problem;
  const std::string plain =
      (decimal.negative ? "-" : "") + decimal.digits + "e" + std::to_string(decimal.exponent);
  const auto result = std::from_chars(plain.data(), plain.data() + plain.size(), value);
  return result.ec == std::errc() ? "" : "it is beyond the range of a double";
}

std::string read_number(std::string_view text, uint64_t& value) {
  Decimal decimal;
  const std::string problem = read_magnitude(text, decimal, value);
  if (!problem.empty()) return problem;
  return decimal.negative && value != 0 ? "it is negative" : "";
}

std::string read_number(std::string_view text, int64_t& value) {
  Decimal decimal;
  uint64_t magnitude = 0;
  const std::string problem = read_magnitude(text, decimal, magnitude);
  if (!problem.empty()) return problem;
  if (magnitude > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
    return "it is too large for a 64-bit number";
  value = decimal.negative ? -static_cast<int64_t>(magnitude) : static_cast<int64_t>(magnitude);
  return "";
}

}  // namespace kla
