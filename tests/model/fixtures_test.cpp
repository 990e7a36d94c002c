// The whole model against PyTorch in float64 (tools/oracle/): logits, losses and every gradient,
// for every rule. The reference to 1e-9, the CPU to 1e-5.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/model/model_fixture.h"
#include "tests/support/fixture.h"

namespace kla::testing {
namespace {

ModelConfig config_of(const Fixture& f) {
  ModelConfig c;
  c.hidden_size = f.number("D");
  c.num_hidden_layers = f.number("L");
  c.num_heads = f.number("H");
  c.key_head_dim = f.number("K");
  c.value_head_dim = f.number("V");
  c.intermediate_size = f.number("F");
  c.vocab_size = f.number("N");
  c.step_size.rule = f.option("rule");
  c.step_size.seq_factor = f.option("factor");
  c.step_size.gate = f.option("decay") == "single" ? "single" : "dual";
  if (f.option("decay") == "dual_logsigmoid") c.decay_gate = "logsigmoid16";
  return c;
}

template <class T>
void load(View to, const std::vector<double>& from) {
  for (size_t i = 0; i < from.size(); ++i) to.as<T>()[i] = static_cast<T>(from[i]);
}

class ModelFixtures : public ::testing::TestWithParam<std::string> {};

TEST_P(ModelFixtures, LossAndEveryGradient) {
  const Fixture f =
      read_fixture(std::string(KLA_SOURCE_DIR) + "/tests/fixtures/model_" + GetParam() + ".txt");
  const int64_t B = f.number("B"), T = f.number("T");
  for (const Device device : {Device::reference, Device::cpu}) {
    const double bound = device == Device::reference ? 1e-9 : 1e-5;
    ModelOnDevice m(config_of(f), device, B, T);
    const ParameterTable& table = m.model.parameters();
    for (int i = 0; i < static_cast<int>(table.specs().size()); ++i) {
      const View view = table.view(m.weights.master, i);
      // The single gate ignores the decay's own parameters; the fixture has none.
      if (!f.has(table[i].name)) {
        EXPECT_FALSE(table[i].trained) << table[i].name;
        continue;
      }
      for (int64_t k = 0; k < view.size(); ++k)
        ModelOnDevice::set(view, k, f.input(table[i].name).values[static_cast<size_t>(k)]);
    }
    load<int32_t>(m.tokens, f.input("tokens").values);
    load<int32_t>(m.targets, f.input("targets").values);
    if (f.has("reset")) {
      m.use_reset = true;
      const std::vector<double>& flags = f.input("reset").values;  // above zero: a document starts
      for (size_t i = 0; i < flags.size(); ++i) m.reset.as<uint8_t>()[i] = flags[i] > 0;
    }
    const std::vector<double>& targets = f.input("targets").values;
    const auto count = static_cast<double>(
        std::count_if(targets.begin(), targets.end(), [](double id) { return id >= 0; }));
    const double loss = m.forward_backward(1 / count) / count;
    EXPECT_LT(f.error("losses", ModelOnDevice::values(m.losses)), bound) << name_of(device);
    EXPECT_LT(f.error("loss", {loss}), bound) << name_of(device);
    int compared = 0;
    for (int i = 0; i < static_cast<int>(table.specs().size()); ++i) {
      if (!table[i].trained) continue;
      const double error =
          f.error("d." + table[i].name, ModelOnDevice::values(table.view(m.gradients, i)));
      EXPECT_LT(error, bound) << name_of(device) << " " << table[i].name;
      ++compared;
    }
    EXPECT_GT(compared, 30);
  }
}

INSTANTIATE_TEST_SUITE_P(PyTorch, ModelFixtures,
                         ::testing::Values("deltanet", "gdn", "k_norm_only", "kaczmarz", "kla",
                                           "kla_resets", "learned_scalar", "longhorn",
                                           "longhorn_single", "no_norm", "relaxed_kaczmarz",
                                           "seq_only"),
                         [](const auto& fixture) { return fixture.param; });

}  // namespace
}  // namespace kla::testing
