// Includes: order of precedence, paths relative to the including file, circles and limits.
#include <gtest/gtest.h>

#include "config_files.h"

namespace kla {
namespace {

LoadedConfig load_part(const std::string& file, const std::vector<std::string>& overrides = {}) {
  return load_config(file, overrides, Completeness::fragment);
}

TEST(Include, LaterWinsMapsMergeListsAreReplaced) {
  test::ConfigFiles files;
  files.write("parts/a.yaml", "optim: {lr: 1, betas: [0.1, 0.2], eps: 3}\nrun: {tags: [a, b]}\n");
  files.write("parts/b.yaml", "defaults: [deep/c.yaml]\noptim: {lr: 2}\n");
  files.write("parts/deep/c.yaml", "optim: {lr: 5, weight_decay: 6}\n");
  const std::string file =
      files.write("main.yaml", "run: {tags: [c]}\ndefaults: [parts/a.yaml, parts/b.yaml]\n");
  const LoadedConfig loaded = load_part(file, {"optim.eps=4"});
  EXPECT_EQ(loaded.config.optim.lr, 2);
  EXPECT_EQ(loaded.config.optim.weight_decay, 6);
  EXPECT_EQ(loaded.config.optim.betas, (std::vector<double>{0.1, 0.2}));
  EXPECT_EQ(loaded.config.optim.eps, 4);
  EXPECT_EQ(loaded.config.run.tags, std::vector<std::string>{"c"});
  EXPECT_EQ(loaded.label_of("optim.lr"), files.path("parts/b.yaml") + ":2:13");
  EXPECT_EQ(loaded.label_of("optim.decay"), "default");
  EXPECT_EQ(loaded.files,
            (std::vector<std::string>{files.path("parts/a.yaml"), files.path("parts/deep/c.yaml"),
                                      files.path("parts/b.yaml"), file}));
}

TEST(Include, ErrorsStandInTheIncludedFile) {
  test::ConfigFiles files;
  files.write("parts/a.yaml", "optim: {rl: 1}\n");
  const std::string file = files.write("x/main.yaml", "defaults: [../parts/a.yaml]\n");
  const std::string error = test::fragment_error(file);
  EXPECT_EQ(error.find(files.path("parts/a.yaml") + ":1:9: error: unknown key 'optim.rl'"), 0u)
      << error;
}

TEST(Include, CirclesAreReportedAsTheChain) {
  test::ConfigFiles files;
  const std::string a = files.write("a.yaml", "defaults: [b.yaml]\n");
  const std::string b = files.write("b.yaml", "run: {seed: 1}\ndefaults: [./x/../a.yaml]\n");
  const std::string error = test::fragment_error(a);
  EXPECT_EQ(error.find(b + ":2:12: error: files include each other in a circle\n"), 0u) << error;
  EXPECT_NE(error.find("note: " + a + " -> " + b + " -> " + a + "\n"), std::string::npos) << error;
  const std::string self = files.write("self.yaml", "defaults: [self.yaml]\n");
  EXPECT_NE(test::fragment_error(self).find(self + " -> " + self), std::string::npos);
}

TEST(Include, DepthAndNumberAreBounded) {
  test::ConfigFiles files;
  const auto name = [](int i) { return "f" + std::to_string(i) + ".yaml"; };
  files.write(name(9), "run: {seed: 5}\n");
  for (int i = 8; i >= 1; --i) files.write(name(i), "defaults: [" + name(i + 1) + "]\n");
  EXPECT_EQ(load_part(files.path(name(2))).config.run.seed, 5u);
  const std::string error = test::fragment_error(files.path(name(1)));
  EXPECT_NE(error.find("f8.yaml:1:12: error: includes are nested deeper than 8 files"),
            std::string::npos)
      << error;

  // Each file includes the next ten times: ten million readings without a bound.
  files.write("g8.yaml", "run: {seed: 5}\n");
  for (int i = 7; i >= 1; --i) {
    const std::string next = "g" + std::to_string(i + 1) + ".yaml";
    std::string list = next;
    for (int k = 1; k < 10; ++k) list += ", " + next;
    files.write("g" + std::to_string(i) + ".yaml", "defaults: [" + list + "]\n");
  }
  EXPECT_NE(test::fragment_error(files.path("g1.yaml")).find("more than 64 files"),
            std::string::npos);
}

TEST(Include, TheSameFileTwiceIsNoCircle) {
  test::ConfigFiles files;
  files.write("base.yaml", "run: {seed: 5}\n");
  files.write("a.yaml", "defaults: [base.yaml]\nrun: {seed: 6}\n");
  files.write("b.yaml", "defaults: [base.yaml]\noptim: {lr: 1}\n");
  const LoadedConfig loaded = load_part(files.write("main.yaml", "defaults: [a.yaml, b.yaml]\n"));
  EXPECT_EQ(loaded.config.run.seed, 5u);
}

TEST(Interpolation, NameAndSeedInPathsOnly) {
  test::ConfigFiles files;
  const std::string file = files.write(
      "t.yaml",
      "run: {name: kla, seed: 7, dir: \"runs/{name}/{seed}-{name}\", tags: [\"{name}\"]}\n"
      "data: {train: \"d/{seed}\", val: \"a}b{\"}\n");
  const Config config = load_part(file, {"run.name=other"}).config;
  EXPECT_EQ(config.run.dir, "runs/other/7-other");
  EXPECT_EQ(config.data.train, "d/7");
  EXPECT_EQ(config.data.val, "a}b{");
  EXPECT_EQ(config.run.tags, std::vector<std::string>{"{name}"});
  EXPECT_EQ(Config{}.run.dir, "runs/{name}");
  EXPECT_EQ(load_part(files.write("u.yaml", "run: {name: x}")).config.run.dir, "runs/x");
}

}  // namespace
}  // namespace kla
