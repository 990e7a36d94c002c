// YAML that yaml-cpp 0.7 takes, loops on or dies of: each is refused, quickly, with a place.
#include <gtest/gtest.h>

#include <ctime>

#include "config_files.h"

namespace kla {
namespace {

std::string repeated(const std::string& text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

void expect_refused(const std::string& yaml, const std::string& message, double seconds = 0.1) {
  SCOPED_TRACE(yaml.substr(0, 60));
  test::ConfigFiles files;
  const std::string file = files.write("hostile.yaml", yaml);
  const std::clock_t start = std::clock();  // processor time: the machine may be busy
  const std::string error = test::fragment_error(file);
  const double spent = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  EXPECT_NE(error.find(message), std::string::npos) << error.substr(0, 2000);
  EXPECT_EQ(error.find(file + ":"), 0u) << error.substr(0, 2000);
  EXPECT_LT(error.size(), 20000u);
  EXPECT_LT(spent, seconds);
}

TEST(HostileYaml, AliasBombsAndCycles) {
  std::string bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n";
  for (char c = 'b'; c < 'j'; ++c) {
    const std::string last = std::string(",*") + static_cast<char>(c - 1);
    bomb += std::string(1, c) + ": &" + c + " [" + repeated(last, 9).substr(1) + "]\n";
  }
  expect_refused(bomb, ":1:4: error: anchors (&) and aliases (*)");
  expect_refused("a: &x [1, *x]", ":1:4: error: anchors (&) and aliases (*)");
}

TEST(HostileYaml, Depth) {
  expect_refused("a: " + repeated("[", 40) + repeated("]", 40), "nested deeper than 32 levels");
  expect_refused("a: " + repeated("[", 100000), "nested deeper than 32 levels");
  expect_refused("a: " + repeated("{a: ", 100000), "nested deeper than 32 levels");
  expect_refused(repeated("- ", 100000) + "x", "nested deeper than 32 levels");
  expect_refused(repeated("? ", 100000) + "x", "error");
  std::string deep;
  for (int i = 0; i < 600; ++i) deep += std::string(static_cast<size_t>(i), ' ') + "a:\n";
  expect_refused(deep, "nested deeper than 32 levels");
}

TEST(HostileYaml, Size) {
  const std::string xs(50 << 20, 'x');
  expect_refused("a: " + xs, "larger than 1048576 bytes");
  std::string keys = "run:\n";
  for (int i = 0; i < 9000; ++i) keys += "  key" + std::to_string(i) + ": 1\n";
  expect_refused(keys, "20 errors or more");
}

// Within the megabyte that a file may have, the parser is slow but its time is bounded.
TEST(HostileYaml, AMegabyte) {
  const std::string xs(1000000, 'x'), ones(1000000, '1');
  const double bound = 2;
  expect_refused("a: [" + repeated("x,", 400000) + "x]", "more than 20000 values", bound);
  expect_refused(repeated("- x\n", 250000), "more than 20000 values", bound);
  expect_refused("a: " + xs, "unknown key 'a'", bound);
  expect_refused(xs + ": 1", "error", bound);
  expect_refused("run: {name: " + xs + "}", "a name of letters", bound);
  expect_refused("run: {name: " + repeated("x\n  ", 200000) + "}", "a name of letters", bound);
  expect_refused("run: {seed: " + ones + "}", "too large", bound);
  expect_refused("optim: {lr: 1e" + ones + "}", "the exponent", bound);
}

TEST(HostileYaml, SecondDocumentsAndTruncatedOnes) {
  expect_refused("run: {seed: 1}\n--- \nrun: {seed: 2}\n", ":2:1: error: a second document");
  expect_refused("run: {seed: 1}\n---\n", "a second document");
  expect_refused("run: {seed: 1}\n...\nrun: {seed: 2}\n", "a second document");
  // Load() gives the first part of this without a word, LoadAll() never returns.
  expect_refused(
      "- rule: a\n  condition: (x = \"y\") and (z)\n  b\"c\" ) or : d (\n- list: x\n ) '", "error");
  expect_refused("a: 1\n)\nb: 2\n", "error");
  expect_refused("a: (b\n  c) \"d\": e\n", "error");
}

TEST(HostileYaml, NotText) {
  expect_refused(std::string("run: {name: a\0b}", 16), ":1:14: error: a control character");
  expect_refused(std::string("r\0u\0n\0:\0", 8), ":1:2: error: a control character");
  expect_refused("\xFF\xFEr\0u\0", "a control character or invalid UTF-8");
  expect_refused("run: {name: \x1B[31m}", "a control character");
  expect_refused("run: {name: a\rb}", "a control character");
  expect_refused("run: {name: \xC2\x85}", "a control character");
  expect_refused("run: {name: \xED\xA0\x80}", "invalid UTF-8");
  expect_refused("run: {name: \xF4\x90\x80\x80}", "invalid UTF-8");
  expect_refused("run: {dir: \"\\u0007\"}", "a control character");
}

TEST(HostileYaml, QuotesThatAreNotClosed) {
  expect_refused("run: {name: \"a", "error");
  expect_refused("%YAML 9.9\n---\nrun: {}\n", "error");
}

TEST(HostileYaml, ForeignTextIsTaken) {
  test::ConfigFiles files;
  const std::string file =
      files.write("t.yaml", "\xEF\xBB\xBFrun: {name: a}\r\ndata:\r\n  train: d\xC3\xA9\r\n");
  const LoadedConfig loaded = load_config(file, {}, Completeness::fragment);
  EXPECT_EQ(loaded.config.run.name, "a");
  EXPECT_EQ(loaded.config.data.train, "d\xC3\xA9");
  EXPECT_EQ(loaded.label_of("run.name"), file + ":1:13");
  EXPECT_EQ(loaded.label_of("data.train"), file + ":3:10");
  for (const char* empty : {"", "# nothing\n", "---\n", "run:\n", "run: {}\n"})
    EXPECT_EQ(test::fragment_error(files.write("empty.yaml", empty)), "") << empty;
}

}  // namespace
}  // namespace kla
