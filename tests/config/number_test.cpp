// The grammar of numbers and the spelling of values.
#include "config/number.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "config/value.h"
#include "core/philox.h"

namespace kla {
namespace {

int64_t whole(const char* text) {
  int64_t value = -12345;
  EXPECT_EQ(read_number(text, value), "") << text;
  return value;
}

TEST(Number, WholeNumbersInEverySpelling) {
  EXPECT_EQ(whole("15e9"), 15'000'000'000);
  EXPECT_EQ(whole("2_097_152"), 2097152);
  EXPECT_EQ(whole("15B"), 15'000'000'000);
  EXPECT_EQ(whole("150M"), 150'000'000);
  EXPECT_EQ(whole("64k"), 64000);
  EXPECT_EQ(whole("1.5k"), 1500);
  EXPECT_EQ(whole("1.50e1"), 15);
  EXPECT_EQ(whole("3.0"), 3);
  EXPECT_EQ(whole("100e-2"), 1);
  EXPECT_EQ(whole("0"), 0);
  EXPECT_EQ(whole("-0"), 0);
  EXPECT_EQ(whole("0e5"), 0);
  EXPECT_EQ(whole("+7"), 7);
  EXPECT_EQ(whole("-7"), -7);
  EXPECT_EQ(whole("9223372036854775807"), std::numeric_limits<int64_t>::max());
  uint64_t seed = 0;
  EXPECT_EQ(read_number("18446744073709551615", seed), "");
  EXPECT_EQ(seed, std::numeric_limits<uint64_t>::max());
}

TEST(Number, RefusesWhatIsAmbiguous) {
  int64_t i = 0;
  double d = 0;
  for (const char* text :
       {"",      "-",   "010", "00",      "-01",   "0x10", "0o7", "1_",   "_1", "1__0",
        "1 2",   "1e",  "1e+", "1e99999", "abc",   "1K",   "1kk", "1e3k", ".",  "e5",
        "1,000", "inf", "nan", ".inf",    "1.2.3", "--1",  "+-1", "1e_3"}) {
    EXPECT_NE(read_number(text, i), "") << text;
    EXPECT_NE(read_number(text, d), "") << text;
  }
  for (const char* text : {"1.5", "1e-1", "9223372036854775808", "1e19", "99999999999999999999999"})
    EXPECT_NE(read_number(text, i), "") << text;
  EXPECT_NE(read_number("1e400", d), "");
  EXPECT_NE(read_number("1e-400", d), "");
}

TEST(Number, Fractions) {
  double d = 0;
  const std::pair<const char*, double> cases[] = {
      {".5", .5},       {"5.", 5},          {"1e-3", 1e-3}, {"0.1", .1},
      {"-2.5e2", -250}, {"1_0.2_5", 10.25}, {"15M", 15e6},  {"0.0", 0}};
  for (const auto& [text, value] : cases) {
    EXPECT_EQ(read_number(text, d), "") << text;
    EXPECT_EQ(d, value) << text;
  }
}

TEST(Number, DoublesReadBackBitForBit) {
  const RandomStream random(7, "doubles");
  int finite = 0;
  for (uint64_t i = 0; i < 10000; ++i) {
    double value = std::bit_cast<double>(random.bits(i)), back = 0;
    if (!std::isfinite(value)) continue;
    ++finite;
    ASSERT_EQ(read_number(spell(&value), back), "") << spell(&value);
    ASSERT_EQ(std::bit_cast<uint64_t>(back), std::bit_cast<uint64_t>(value));
  }
  EXPECT_GT(finite, 9900);
}

TEST(Value, SpellsListsAndQuotesWhatYamlWouldMisread) {
  std::vector<double> betas = {0.9, 0.95};
  EXPECT_EQ(spell(&betas), "[0.9, 0.95]");
  std::vector<std::string> words = {"a",    "",           "null", "-x", "runs/a_b-1.2",
                                    "a: b", "say \"\\\"", "#"};
  EXPECT_EQ(spell(&words), R"([a, "", "null", "-x", runs/a_b-1.2, "a: b", "say \"\\\"", "#"])");
  std::vector<int64_t> none;
  EXPECT_EQ(spell(&none), "[]");
}

}  // namespace
}  // namespace kla
