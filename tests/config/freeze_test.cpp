// The frozen config reproduces the run's config bit for bit, and freezing it again changes nothing.
#include "config/freeze.h"

#include <gtest/gtest.h>

#include <set>

#include "config/schema.h"
#include "config/value.h"
#include "config_files.h"

namespace kla {
namespace {

constexpr const char* kHardYaml =
    "run: {name: a, dir: 'runs/# {name} \"q\" \\', tags: ['', 'null', '- x', \"\xC3\xA9 #\"]}\n"
    "data: {train: 'a  # b', seq_len: 100}\n"
    "optim: {lr: 0.1, betas: [0.30000000000000004, 1e-300], eps: 5e-324}\n"
    "train: {max_tokens: 1B, global_batch_tokens: 400}\n";

TEST(Freeze, LoadsBackBitForBitAndStaysTheSame) {
  test::ConfigFiles files;
  const std::string file = files.write("t.yaml", kHardYaml);
  const LoadedConfig loaded = load_config(file, {"run.seed=18446744073709551615"});
  const std::string frozen = freeze(loaded);
  const LoadedConfig again = load_config(files.write("frozen.yaml", frozen));
  EXPECT_TRUE(diff_configs(loaded.config, again.config).empty()) << frozen;
  EXPECT_EQ(again.config.optim.betas[0], 0.1 + 0.2);
  EXPECT_EQ(again.config.optim.eps, 5e-324);
  EXPECT_EQ(again.config.run.dir, "runs/# a \"q\" \\");
  EXPECT_EQ(again.config.run.tags, loaded.config.run.tags);
  EXPECT_EQ(freeze(again), frozen);
}

TEST(Freeze, SaysWhereEveryValueCameFrom) {
  test::ConfigFiles files;
  const std::string file = files.write("t.yaml", kHardYaml);
  const LoadedConfig loaded = load_config(file, {"--optim.weight_decay", "0.2"});
  const std::string frozen = freeze(loaded);
  const auto has_line = [&](const std::string& begin, const std::string& end) {
    const size_t at = frozen.find("\n" + begin);
    ASSERT_NE(at, std::string::npos) << begin << frozen;
    const std::string line = frozen.substr(at + 1, frozen.find('\n', at + 1) - at - 1);
    EXPECT_EQ(line.substr(line.find("  # ") + 4), end) << line;
  };
  has_line("  seq_len: 100", file + ":2:34");
  has_line("  weight_decay: 0.2", "command line");
  has_line("    rule: kla", "default");
  EXPECT_EQ(frozen.find(kFrozenHeader), 0u);
  EXPECT_NE(frozen.find("# sha256 " + config_hash(loaded.config)), std::string::npos);
  // A value changed on the way is told from the ones that were frozen.
  const LoadedConfig changed =
      load_config(files.write("frozen.yaml", frozen), {"log.interval_steps=3"});
  EXPECT_EQ(changed.label_of("log.interval_steps"), "command line");
  EXPECT_EQ(changed.label_of("data.seq_len"), file + ":2:34");
}

TEST(Freeze, WritesEveryKeyOfTheOtherConfigsToo) {
  test::ConfigFiles files;
  const LoadedPrepareConfig prepare =
      load_prepare_config(files.write("p.yaml", "inputs: [a, b]\noutput: o\n"));
  const LoadedPrepareConfig prepare_again =
      load_prepare_config(files.write("p2.yaml", freeze(prepare)));
  EXPECT_EQ(freeze(prepare_again), freeze(prepare));
  EXPECT_EQ(config_hash(prepare_again.config), config_hash(prepare.config));
  EXPECT_EQ(prepare_again.config.inputs, (std::vector<std::string>{"a", "b"}));
  const LoadedBenchConfig bench = load_bench_config(files.write("b.yaml", "ops: [x]\n"));
  EXPECT_EQ(freeze(load_bench_config(files.write("b2.yaml", freeze(bench)))), freeze(bench));
}

TEST(Hash, ChangesWithEveryKeyThatCanChangeTheResultAndNoOther) {
  Config config;
  const Schema schema = schema_of(config);
  const std::string before = config_hash(config);
  std::set<std::string> safe;
  for (const Field& field : schema.fields()) {
    const Config kept = config;
    std::visit(
        [](auto* value) {
          using T = std::remove_pointer_t<decltype(value)>;
          if constexpr (std::is_same_v<T, bool>) {
            *value = !*value;
          } else if constexpr (std::is_arithmetic_v<T>) {
            *value += 1;
          } else {
            value->push_back({});
          }
        },
        field.slot);
    const std::vector<ConfigDifference> differences = diff_configs(kept, config);
    ASSERT_EQ(differences.size(), 1u) << field.path;
    EXPECT_EQ(differences[0].path, field.path);
    EXPECT_EQ(differences[0].safe, config_hash(config) == before) << field.path;
    if (differences[0].safe) safe.insert(field.path);
    config = kept;
  }
  EXPECT_EQ(config_hash(config), before);
  EXPECT_EQ(safe, (std::set<std::string>{
                      "run.name", "run.dir", "run.resume", "run.tags", "train.recompute",
                      "eval.interval_tokens", "checkpoint.interval_tokens", "checkpoint.keep_last",
                      "checkpoint.keep_every_tokens", "checkpoint.on_error", "log.interval_steps",
                      "log.csv", "log.probe_interval_steps", "device.threads",
                      "dist.init_timeout_s", "dist.step_timeout_s", "dist.save_timeout_s",
                      "guard.nonfinite.max_consecutive", "guard.nonfinite.max_total"}));
}

}  // namespace
}  // namespace kla
