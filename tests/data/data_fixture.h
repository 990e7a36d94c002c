// What the data tests share: a folder of their own, a made-up corpus, a small trained tokenizer,
// and a check of the error a call ends in.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/file.h"
#include "core/philox.h"
#include "data/tokenizer.h"

namespace kla {

class DataTest : public ::testing::Test {
 protected:
  DataTest() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = ::testing::TempDir() + "kla_" + info->test_suite_name() + "_" + info->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  ~DataTest() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  std::string write(const std::string& name, const std::string& content) const {
    std::filesystem::create_directories(std::filesystem::path(path(name)).parent_path());
    write_file_atomic(path(name), content);
    return path(name);
  }

 private:
  std::string folder_;
};

// Text of words that come back, with digits, umlauts, tabs and lines.
inline std::string made_up_text(uint64_t seed, int64_t words) {
  static const std::vector<std::string> kWords = {
      "the",    "kaczmarz", "linear", "attention", "größe", "reads", "1913",     "writes,", "state",
      "of\tan", "over",     "memory", "model.",    "café",  "naïve", "projects", "onto",    "a",
      "row",    "line\n",   "key",    "value",     "decay", "gate",  "step",     "size",    "and"};
  const RandomStream random(seed, "made-up text");
  std::string text;
  for (int64_t i = 0; i < words; ++i)
    text += kWords[random.bits(static_cast<uint64_t>(i)) % kWords.size()] + " ";
  return text;
}

inline std::string made_up_jsonl(uint64_t seed, int64_t documents) {
  std::string lines;
  for (int64_t i = 0; i < documents; ++i) {
    std::string text = made_up_text(seed * 1000 + static_cast<uint64_t>(i), 20 + i % 50);
    for (size_t at = 0; (at = text.find_first_of("\n\t", at)) != std::string::npos; at += 2)
      text.replace(at, 1, text[at] == '\n' ? "\\n" : "\\t");
    lines += "{\"id\": " + std::to_string(i) + ", \"text\": \"" + text + "\"}\n";
  }
  return lines;
}

// The bytes of a model of 400 ids, trained once.
inline const std::string& small_model() {
  static const std::string model = [] {
    TokenizerConfig settings;
    settings.vocab_size = 400;
    settings.character_coverage = 1;
    uint64_t i = 0;
    return train_tokenizer(settings, [&i](std::string& text) {
      text = made_up_text(i, 200);
      return i++ < 50;
    });
  }();
  return model;
}

// Runs `call` and returns its Error; fails if there is none or its code differs.
inline std::string error_of(Exit code, const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << "one line: " << e.what();
    return e.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

#define EXPECT_MENTIONS(text, part) \
  EXPECT_NE(std::string(text).find(part), std::string::npos) << text

}  // namespace kla
