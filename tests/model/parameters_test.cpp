// Counts, names and initial values of the parameters, against the study's presets
// (PAPER_SPEC 1.2, 3.6).
#include "model/parameters.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "tests/model/model_fixture.h"

namespace kla {
namespace {

ModelConfig preset(int64_t L, int64_t D, int64_t H, int64_t K, int64_t V, int64_t F, int64_t N) {
  ModelConfig c;
  c.num_hidden_layers = L;
  c.hidden_size = D;
  c.num_heads = H;
  c.key_head_dim = K;
  c.value_head_dim = V;
  c.intermediate_size = F;
  c.vocab_size = N;
  return c;
}

// The study also counts H values D a layer that it never uses when the Mamba gate is on.
int64_t study_count(const ModelConfig& c) {
  const int64_t unused = c.decay_gate == "mamba" ? c.num_hidden_layers * c.num_heads : 0;
  return LanguageModel(c).parameters().count() + unused;
}

TEST(Parameters, CountsOfTheStudysPresets) {
  ModelConfig big = preset(11, 1536, 12, 96, 192, 6144, 32000);
  for (const char* rule : {"gdn", "kla", "kaczmarz", "relaxed_kaczmarz", "longhorn"}) {
    big.step_size.rule = rule;
    EXPECT_EQ(study_count(big), 516938832) << rule;
    EXPECT_EQ(LanguageModel(big).parameters().count(), 516938832 - 11 * 12);
  }
  ModelConfig deltanet = big;
  deltanet.step_size.rule = "deltanet";
  deltanet.decay_gate = "logsigmoid16";
  EXPECT_EQ(study_count(deltanet), 516938568);
  EXPECT_EQ(LanguageModel(big).embedding_count(), 49152000);

  for (const auto& [V, total] : std::vector<std::pair<int64_t, int64_t>>{
           {256, 555901712}, {512, 711753232}, {1024, 1023456272}, {2048, 1646862352}}) {
    ModelConfig wide = big;
    wide.value_head_dim = V;
    EXPECT_EQ(study_count(wide), total);
  }
  EXPECT_EQ(study_count(preset(2, 256, 4, 48, 96, 1024, 8192)), 4468192);
  EXPECT_EQ(study_count(preset(2, 256, 2, 96, 192, 1024, 128)), 2401936);

  ModelConfig learned = preset(2, 256, 4, 48, 96, 1024, 8192);
  learned.step_size.rule = "learned_scalar";
  EXPECT_EQ(study_count(learned), 4468192 + 2);
}

TEST(Parameters, ARuleAddsItsLearnedScalarAndNothingElse) {
  ModelConfig c = testing::small_config();
  const int64_t L = c.num_hidden_layers, H = c.num_heads;
  c.step_size.rule = "kla";
  const int64_t bare = LanguageModel(c).parameters().count();
  for (int rule = 0; rule < kRuleCount; ++rule) {
    const RuleInfo& info = rule_info(rule);
    const int64_t per_layer = info.scalar == LearnedScalar::none        ? 0
                              : info.scalar == LearnedScalar::per_layer ? 1
                                                                        : H;
    c.step_size.rule = info.name;
    c.step_size.learned_scalar_init = 0.25;
    const LanguageModel model(c);
    const ParameterTable& table = model.parameters();
    EXPECT_EQ(table.count(), bare + L * per_layer) << info.name;
    std::vector<double> flat(static_cast<size_t>(table.flat_size()));
    initialize(table, View(flat.data(), {table.flat_size()}), 1);
    for (const ParameterSpec& spec : table.specs())
      for (int64_t i = 0; spec.name.ends_with("learned_norm_logit") && i < spec.count; ++i)
        EXPECT_NEAR(std::log1p(std::exp(flat[static_cast<size_t>(spec.offset + i)])), 0.25, 1e-12);
  }
}

TEST(Parameters, InitialDistributions) {
  ModelConfig c = preset(2, 128, 64, 8, 8, 256, 512);
  const LanguageModel model(c);
  const ParameterTable& table = model.parameters();
  std::vector<double> flat(static_cast<size_t>(table.flat_size()));
  initialize(table, View(flat.data(), {table.flat_size()}), 1);

  for (const ParameterSpec& spec : table.specs()) {
    const double* x = flat.data() + spec.offset;
    double sum = 0, squares = 0, low = x[0], high = x[0];
    for (int64_t i = 0; i < spec.count; ++i) {
      sum += x[i];
      squares += x[i] * x[i];
      low = std::min(low, x[i]);
      high = std::max(high, x[i]);
    }
    const double n = static_cast<double>(spec.count), mean = sum / n;
    const double variance = squares / n - mean * mean;
    // Range `a`, mean 0 and variance a^2/3 of U(-a, a), each within four standard errors.
    auto expect_uniform = [&](double a) {
      EXPECT_LE(high, a) << spec.name;
      EXPECT_GE(low, -a) << spec.name;
      EXPECT_GT(high - low, 2 * a * (1 - 20 / n)) << spec.name;
      EXPECT_NEAR(mean, 0, 4 * a / std::sqrt(3 * n)) << spec.name;
      EXPECT_NEAR(variance, a * a / 3, 4 * a * a * std::sqrt(4.0 / 45 / n)) << spec.name;
    };
    auto ends_with = [&](const std::string& tail) {
      return spec.name.size() >= tail.size() &&
             spec.name.compare(spec.name.size() - tail.size(), tail.size(), tail) == 0;
    };
    if (ends_with("embeddings.weight")) {
      EXPECT_NEAR(mean, 0, 4 * 0.02 / std::sqrt(n));
      EXPECT_NEAR(variance, 0.0004, 4 * 0.0004 * std::sqrt(2 / n));
    } else if (ends_with("norm.weight")) {
      EXPECT_EQ(low, 1);
      EXPECT_EQ(high, 1);
    } else if (ends_with("bias") && !ends_with("dt_bias")) {
      EXPECT_EQ(low, 0);
      EXPECT_EQ(high, 0);
    } else if (ends_with("conv1d.weight")) {
      expect_uniform(0.5);
    } else if (ends_with(
                   "A_log")) {  // e^A ~ U(0, 16): mean of e^A 8, standard deviation 16/sqrt(12)
      double mean_a = 0;
      for (int64_t i = 0; i < spec.count; ++i) mean_a += std::exp(x[i]) / n;
      EXPECT_LE(high, std::log(16.0));
      EXPECT_NEAR(mean_a, 8, 4 * 16 / std::sqrt(12 * n));
    } else if (ends_with("dt_bias")) {  // ln softplus(x) ~ U(ln 0.001, ln 0.1)
      double mean_log = 0;
      for (int64_t i = 0; i < spec.count; ++i) mean_log += std::log(std::log1p(std::exp(x[i]))) / n;
      EXPECT_GE(std::log1p(std::exp(low)), 0.001 * (1 - 1e-9));
      EXPECT_LE(std::log1p(std::exp(high)), 0.1 * (1 + 1e-9));
      const double centre = (std::log(0.001) + std::log(0.1)) / 2;
      EXPECT_NEAR(mean_log, centre, 4 * std::log(100.0) / std::sqrt(12 * n));
    } else if (ends_with("mlp.down_proj.weight")) {
      expect_uniform(1 / std::sqrt(256.0) / std::sqrt(2 * 2.0));
    } else if (ends_with("o_proj.weight")) {
      expect_uniform(1 / std::sqrt(64.0 * 8));
    } else {
      ASSERT_TRUE(ends_with("_proj.weight")) << spec.name << " has no expected distribution";
      expect_uniform(1 / std::sqrt(128.0));
    }
  }
}

TEST(Parameters, VariantsShareTheInitialValuesOfSharedTensors) {
  const LanguageModel kla(testing::small_config("kla"));
  const LanguageModel learned(testing::small_config("learned_scalar"));
  std::vector<float> a(static_cast<size_t>(kla.parameters().flat_size()));
  std::vector<float> b(static_cast<size_t>(learned.parameters().flat_size()));
  initialize(kla.parameters(), View(a.data(), {static_cast<int64_t>(a.size())}), 5);
  initialize(learned.parameters(), View(b.data(), {static_cast<int64_t>(b.size())}), 5);
  int shared = 0;
  for (const ParameterSpec& spec : kla.parameters().specs()) {
    for (const ParameterSpec& other : learned.parameters().specs()) {
      if (spec.name != other.name) continue;
      ++shared;
      for (int64_t i = 0; i < spec.count; ++i)
        ASSERT_EQ(a[static_cast<size_t>(spec.offset + i)], b[static_cast<size_t>(other.offset + i)])
            << spec.name;
    }
  }
  EXPECT_EQ(shared, static_cast<int>(kla.parameters().specs().size()));
}

TEST(Parameters, SegmentsCoverEveryParameterOnceAndSkipTheUntrained) {
  ModelConfig c = testing::small_config("kaczmarz");  // its step has no learned part
  const LanguageModel model(c);
  const ParameterTable& table = model.parameters();
  for (const bool decay_all : {true, false}) {
    const auto segments = table.segments(decay_all);
    for (const ParameterSpec& spec : table.specs()) {
      int covered = 0;
      for (const AdamwSegment& s : segments) {
        if (spec.offset < s.first || spec.offset >= s.first + s.count) continue;
        ++covered;
        EXPECT_LE(spec.offset + spec.count, s.first + s.count);
        EXPECT_EQ(s.decay, decay_all || spec.matrix) << spec.name;
        EXPECT_EQ(s.trained, spec.name.find("b_proj") == std::string::npos) << spec.name;
      }
      EXPECT_EQ(covered, 1) << spec.name;
    }
  }
}

}  // namespace
}  // namespace kla
