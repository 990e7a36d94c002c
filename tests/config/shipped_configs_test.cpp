// Every file in configs/ loads, names rules that exist, and the study's presets have its sizes.
#include <gtest/gtest.h>

#include <filesystem>

#include "commands/config_command.h"
#include "config/sweep_config.h"
#include "config_files.h"
#include "core/file.h"
#include "kernels/step_rules.h"

namespace kla {
namespace {

const std::filesystem::path kConfigs = std::filesystem::path(KLA_SOURCE_DIR) / "configs";

std::vector<std::string> shipped(const std::filesystem::path& folder) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder))
    if (entry.path().extension() == ".yaml") files.push_back(entry.path().string());
  return files;
}

TEST(ShippedConfigs, AllLoad) {
  const std::vector<std::string> files = shipped(kConfigs);
  EXPECT_GE(files.size(), 30u);
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const int code = run_config_check(files);
  testing::internal::GetCapturedStdout();
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  EXPECT_EQ(code, 0);
}

TEST(ShippedConfigs, ModelPresetsNameRulesThatExist) {
  for (const std::string& file : shipped(kConfigs / "models")) {
    const LoadedConfig loaded = load_config(file, {}, Completeness::fragment);
    EXPECT_GE(find_rule(loaded.config.model.step_size.rule), 0) << file;
    for (const auto& [key, origins] : loaded.assignments)
      EXPECT_EQ(key.rfind("model.", 0), 0u) << file << " sets " << key;
  }
}

// Weights of a gated-delta model, PAPER_SPEC 3.6, without the D values that nothing uses.
int64_t parameters(const ModelConfig& m) {
  const int64_t D = m.hidden_size, H = m.num_heads, keys = H * m.key_head_dim,
                values = H * m.value_head_dim;
  const int64_t layer = 2 * D * keys + 3 * D * values + m.conv_size * (2 * keys + values) +
                        2 * D * H + H + m.value_head_dim + (m.decay_gate == "mamba" ? 2 * H : H) +
                        3 * D * m.intermediate_size + 2 * D;
  return m.vocab_size * D + m.num_hidden_layers * layer + D;
}

TEST(ShippedConfigs, PaperRunsHaveTheStudysSizeAndProtocol) {
  const std::pair<const char*, int64_t> models[] = {
      {"kla", 516938832 - 132},      {"gdn", 516938832 - 132},
      {"longhorn", 516938832 - 132}, {"kaczmarz", 516938832 - 132},
      {"deltanet", 516938568},       {"relaxed_kaczmarz", 516938832 - 132}};
  for (const auto& [name, total] : models) {
    const std::string stem = (kConfigs / "paper" / name).string() + "_0.4b";
    const Config paper = load_config(stem + ".yaml").config;
    EXPECT_EQ(parameters(paper.model), total) << name;
    EXPECT_EQ(paper.model.step_size.rule, name);
    EXPECT_EQ(paper.run.dir, "runs/" + std::string(name) + "_0.4b");
    EXPECT_EQ(paper.train.max_tokens / paper.train.global_batch_tokens, 476);
    EXPECT_EQ(paper.schedule.warmup_tokens * 100, paper.train.max_tokens);
    const Config other = load_config(stem + "_b256.yaml").config;
    EXPECT_EQ(other.train.max_tokens / other.train.global_batch_tokens, 953);
    EXPECT_EQ(parameters(other.model), total);
  }
  const auto preset = [](const char* name) {
    const std::string file = (kConfigs / "models" / name).string() + ".yaml";
    return parameters(load_config(file, {}, Completeness::fragment).config.model);
  };
  EXPECT_EQ(preset("kla_mqar"), 4468192 - 2 * 4);
  EXPECT_EQ(preset("gdn_palindrome"), 2401936 - 2 * 2);
  EXPECT_EQ(preset("gdn_stack"), 2401936 - 2 * 2);
}

// Every run of every ablation loads, and names a rule that exists.
TEST(ShippedConfigs, AblationsNameRunsThatLoad) {
  size_t runs = 0;
  for (const std::string& file : shipped(kConfigs / "ablations")) {
    const std::string stem = std::filesystem::path(file).stem();
    if (stem.starts_with("common_") || stem.ends_with("_base")) continue;
    for (const SweepRun& run : load_sweep(file).runs) {
      EXPECT_GE(find_rule(run.loaded.config.model.step_size.rule), 0) << run.name;
      ++runs;
    }
  }
  EXPECT_GE(runs, 50u);
}

// The study's ablations: its protocol with 100M tokens, 20 evaluations, and its model sizes.
TEST(ShippedConfigs, AblationsHaveTheStudysProtocol) {
  const std::string base = (kConfigs / "ablations" / "common_0.4b.yaml").string();
  const Config c = load_config(base).config;
  EXPECT_EQ(c.model.step_size.rule, "kla");
  EXPECT_EQ(c.train.max_tokens, 100'000'000);
  EXPECT_EQ(c.train.max_tokens / c.train.global_batch_tokens, 47);
  EXPECT_EQ(c.train.max_tokens / c.eval.interval_tokens, 20);
  EXPECT_EQ(c.schedule.warmup_tokens * 100, c.train.max_tokens);
  EXPECT_EQ(c.optim.lr, 1e-4);
  EXPECT_EQ(parameters(c.model), 516938832 - 132);
  for (const auto& [V, total] : std::vector<std::pair<int, int64_t>>{
           {256, 555901712}, {512, 711753232}, {1024, 1023456272}, {2048, 1646862352}}) {
    const std::string wide = "model.value_head_dim=" + std::to_string(V);
    EXPECT_EQ(parameters(load_config(base, {wide}).config.model), total - 132);
  }
}

TEST(ConfigCommand, CheckNamesTheFilesAndFailsOnAnyError) {
  test::ConfigFiles files;
  const std::string good = files.write("good.yaml", "model: {num_heads: 2}\n");
  const std::string bad = files.write("bad.yaml", "inputs: [a]\noutptu: b\n");
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  EXPECT_EQ(run_config_check({good, bad}), 2);
  const std::string out = testing::internal::GetCapturedStdout();
  const std::string err = testing::internal::GetCapturedStderr();
  EXPECT_NE(out.find("needs data.train, train.max_tokens"), std::string::npos) << out;
  EXPECT_NE(err.find("bad.yaml:2:1: error: unknown key 'outptu'"), std::string::npos) << err;
  EXPECT_NE(err.find("did you mean 'output'?"), std::string::npos) << err;
}

TEST(ConfigCommand, ASweepIsCheckedButNotShown) {
  const std::string sweep = (kConfigs / "ablations" / "step_size_cpu.yaml").string();
  testing::internal::CaptureStdout();
  EXPECT_EQ(run_config_check({sweep}), 0);
  EXPECT_NE(testing::internal::GetCapturedStdout().find("ok, a sweep of 21 runs"),
            std::string::npos);
  for (const SweepRun& run : load_sweep(sweep).runs)
    EXPECT_GE(find_rule(run.loaded.config.model.step_size.rule), 0) << run.name;
  EXPECT_THROW(run_config_show(sweep, {}), Error);
  EXPECT_THROW(run_config_explain("optim.lr", sweep), Error);
}

TEST(ConfigCommand, ShowPrintsAConfigThatShowsItself) {
  test::ConfigFiles files;
  const auto show = [](const std::string& file) {
    testing::internal::CaptureStdout();
    EXPECT_EQ(run_config_show(file, {}), 0);
    return testing::internal::GetCapturedStdout();
  };
  for (const char* name : {"paper/kla_0.4b.yaml", "bench/cpu.yaml", "models/gdn_stack.yaml"}) {
    const std::string text = show((kConfigs / name).string());
    EXPECT_EQ(show(files.write("shown.yaml", text)), text);
  }
}

TEST(ConfigCommand, ExplainShowsTheSchemaAndWhatSetTheValue) {
  const auto explain = [](const std::string& key, const std::string& file) {
    testing::internal::CaptureStdout();
    EXPECT_EQ(run_config_explain(key, file, {"optim.lr=4e-4"}), 0);
    return testing::internal::GetCapturedStdout();
  };
  const std::string paper = (kConfigs / "paper" / "kla_0.4b.yaml").string();
  const std::string lr = explain("optim.lr", paper);
  EXPECT_NE(lr.find("optim.lr: a number >= 0\n  peak learning rate\n  default 0.001"),
            std::string::npos)
      << lr;
  EXPECT_NE(lr.find("common.yaml:"), std::string::npos) << lr;
  EXPECT_NE(lr.find("command line  4e-4  <- holds"), std::string::npos) << lr;
  EXPECT_NE(explain("tokenizer.vocab_size", "").find("default 32000"), std::string::npos);
  EXPECT_NE(explain("schedule", "").find("schedule.warmup_tokens = 0"), std::string::npos);
  try {
    run_config_explain("optim.learning_rate");
    FAIL() << "an unknown key was explained";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::usage);
    EXPECT_EQ(error.remedy(), "did you mean 'optim.lr'?");
  }
}

}  // namespace
}  // namespace kla
