#include "core/utf8.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <utility>

namespace kla {
namespace {

TEST(Utf8, KnowsWhatIsValid) {
  for (const char* good :
       {"", "ascii", "é", "中", "\xF0\x9F\x98\x80", "\xEF\xBF\xBF", "\xF4\x8F\xBF\xBF"})
    EXPECT_TRUE(valid_utf8(good)) << good;
  for (const char* bad :
       {"\x80", "\xC3", "\xC0\xAF", "\xE0\x80\xAF", "\xED\xA0\x80", "\xF0\x80\x80\x80",
        "\xF4\x90\x80\x80", "\xFF", "eight ok\xE4\xB8", "12345678901234\xC3"})
    EXPECT_FALSE(valid_utf8(bad)) << bad;
}

TEST(Utf8, DecodesCodePoints) {
  const std::pair<const char*, uint32_t> kCases[] = {
      {"A", 'A'}, {"\xC3\xA9", 0xE9}, {"\xE4\xB8\xAD", 0x4E2D}, {"\xF0\x9F\x98\x80", 0x1F600}};
  for (const auto& [text, code] : kCases) {
    const Utf8Character c = first_character(std::string(text) + "z");
    EXPECT_EQ(c.bytes, std::strlen(text));
    EXPECT_EQ(c.code, code);
  }
  EXPECT_EQ(first_character("\xC3z").bytes, 0u);
}

TEST(Utf8, CountsAndCutsCharactersNotBytes) {
  const std::string text = "a\xC3\xA9\xE4\xB8\xADz";  // 1 + 2 + 3 + 1 bytes
  EXPECT_EQ(count_characters(text), 4u);
  EXPECT_EQ(bytes_of(text, 2), 3u);
  EXPECT_EQ(bytes_of(text, 9), text.size());
  EXPECT_EQ(character_cut(text, 5), 3u);
  EXPECT_EQ(character_cut(text, 6), 6u);
  EXPECT_EQ(character_cut(text, 99), text.size());
}

}  // namespace
}  // namespace kla
