// The whole model: gradients against finite differences, recomputation, carried state, decoding,
// document resets, memory plan, and the CPU against the reference in double.
#include "model/language_model.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/model/model_fixture.h"

namespace kla {
namespace {

using testing::ModelOnDevice;
using testing::small_config;

double relative_rms(const std::vector<double>& x, const std::vector<double>& expected) {
  double error = 0, size = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    error += (x[i] - expected[i]) * (x[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  return std::sqrt(error / std::max(size, 1e-300));
}

// Weights away from the initial point, so that norms and biases have something to show.
void perturb(ModelOnDevice& m, double scale = 0.2) {
  const RandomStream random(3, "perturb");
  for (int64_t i = 0; i < m.weights.master.size(); ++i)
    ModelOnDevice::set(m.weights.master, i,
                       ModelOnDevice::at(m.weights.master, i) +
                           scale * random.uniform(static_cast<uint64_t>(i), -1, 1));
}

// Of the loss by weight `at`: a central difference of fourth order, for a rule may curve the loss
// strongly.
double slope_of_loss(ModelOnDevice& m, int64_t at) {
  const double w = ModelOnDevice::at(m.weights.master, at), h = 1e-5;
  const auto loss = [&](double weight) {
    ModelOnDevice::set(m.weights.master, at, weight);
    return m.loss();
  };
  const double near = loss(w + h) - loss(w - h), far = loss(w + 2 * h) - loss(w - 2 * h);
  ModelOnDevice::set(m.weights.master, at, w);
  return (8 * near - far) / (12 * h);
}

class EveryRule : public ::testing::TestWithParam<int> {
 protected:
  ModelConfig config() const { return small_config(std::string(rule_info(GetParam()).name)); }
};

TEST_P(EveryRule, GradientsMatchFiniteDifferences) {
  ModelOnDevice m(config(), Device::reference, 2, 70);
  perturb(m);
  m.forward_backward();
  const std::vector<double> gradient = ModelOnDevice::values(m.gradients);
  for (const ParameterSpec& spec : m.model.parameters().specs()) {
    double largest = 0;
    for (int64_t i = 0; i < spec.count; ++i)
      largest = std::max(largest, std::abs(gradient[static_cast<size_t>(spec.offset + i)]));
    EXPECT_EQ(largest > 0, spec.trained) << spec.name;
    for (int64_t i = 0; i < spec.count; i += std::max<int64_t>(1, spec.count / 3)) {
      const int64_t at = spec.offset + i;
      EXPECT_NEAR(slope_of_loss(m, at), gradient[static_cast<size_t>(at)],
                  1e-6 * std::max(1.0, largest))
          << spec.name << " " << i;
    }
  }
}

std::vector<double> gradient_of(const ModelOnDevice& m, int index) {
  return ModelOnDevice::values(m.model.parameters().view(m.gradients, index));
}

// How far the gradient of each parameter moves if every weight moves by up to half a unit in the
// last place of f32, relative and the largest of a few draws. Where few numbers sum up terms of
// either sign, as a learned scalar's do, nothing computed in f32 is closer than that.
std::vector<double> moves_by_rounding(ModelOnDevice& reference) {
  const std::vector<double> weights = ModelOnDevice::values(reference.weights.master);
  const int count = static_cast<int>(reference.model.parameters().specs().size());
  std::vector<std::vector<double>> exact;
  for (int index = 0; index < count; ++index) exact.push_back(gradient_of(reference, index));
  std::vector<double> moves(exact.size());
  for (uint64_t draw = 0; draw < 4; ++draw) {
    const RandomStream random(draw, "rounding");
    for (size_t i = 0; i < weights.size(); ++i)
      ModelOnDevice::set(reference.weights.master, static_cast<int64_t>(i),
                         weights[i] * (1 + 0x1p-24 * random.uniform(i, -1, 1)));
    reference.forward_backward();
    for (int index = 0; index < count; ++index) {
      double& move = moves[static_cast<size_t>(index)];
      move = std::max(
          move, relative_rms(gradient_of(reference, index), exact[static_cast<size_t>(index)]));
    }
  }
  return moves;
}

TEST_P(EveryRule, CpuFollowsTheReference) {
  // Heads as wide as real ones: in f32 the output norm of few channels is badly conditioned.
  ModelConfig c = config();
  c.hidden_size = 64;
  c.key_head_dim = 32;
  c.value_head_dim = 64;
  ModelOnDevice reference(c, Device::reference, 2, 130), cpu(c, Device::cpu, 2, 130);
  for (int64_t i = 0; i < cpu.weights.master.size(); ++i)  // the same rounded inputs
    ModelOnDevice::set(reference.weights.master, i, ModelOnDevice::at(cpu.weights.master, i));
  const double expected = reference.forward_backward(), loss = cpu.forward_backward();
  EXPECT_NEAR(loss, expected, 1e-5 * expected);
  const std::vector<ParameterSpec>& specs = cpu.model.parameters().specs();
  std::vector<double> errors;
  for (int index = 0; index < static_cast<int>(specs.size()); ++index)
    errors.push_back(relative_rms(gradient_of(cpu, index), gradient_of(reference, index)));
  const std::vector<double> moves = moves_by_rounding(reference);
  for (size_t index = 0; index < specs.size(); ++index) {
    if (!specs[index].trained) continue;
    EXPECT_LT(errors[index], std::max(1e-5, 3 * moves[index])) << specs[index].name;
  }
}

TEST_P(EveryRule, PiecesGiveTheSameLossesAsTheWhole) {
  for (const Device device : {Device::reference, Device::cpu}) {
    ModelOnDevice m(config(), device, 2, 150);
    perturb(m, 0.05);
    m.forward_backward();
    const std::vector<double> whole = ModelOnDevice::values(m.losses);
    LanguageModel::clear(m.context, m.state);
    std::vector<double> pieces(whole.size());
    int64_t first = 0;
    for (const int64_t n : {1, 1, 62, 65, 3, 18}) {  // one-token steps, chunk edges, odd lengths
      std::vector<int32_t> tokens, targets;
      for (int64_t b = 0; b < m.B; ++b)
        for (int64_t t = first; t < first + n; ++t) {
          tokens.push_back(m.tokens.as<int32_t>()[b * m.T + t]);
          targets.push_back(m.targets.as<int32_t>()[b * m.T + t]);
        }
      View losses = View(m.losses.data, m.losses.dtype, {m.B * n});
      m.model.loss_from(
          m.context, m.weights,
          {{m.B, n, {}}, View(tokens.data(), {m.B * n}), View(targets.data(), {m.B * n})}, m.state,
          losses);
      for (int64_t b = 0; b < m.B; ++b)
        for (int64_t t = 0; t < n; ++t)
          pieces[static_cast<size_t>(b * m.T + first + t)] = ModelOnDevice::at(losses, b * n + t);
      first += n;
    }
    ASSERT_EQ(first, m.T);
    EXPECT_LT(relative_rms(pieces, whole), device == Device::reference ? 1e-10 : 1e-4);
  }
}

INSTANTIATE_TEST_SUITE_P(Rules, EveryRule, ::testing::Range(0, kRuleCount),
                         [](const auto& rule) { return std::string(rule_info(rule.param).name); });

TEST(LanguageModel, SequenceFactorsAndGatesMatchFiniteDifferences) {
  for (const char* factor : {"inv_t", "inv_sqrt_t", "inv_log_t"}) {
    for (const char* gate : {"dual", "single"}) {
      ModelConfig c = small_config();
      c.step_size.seq_factor = factor;
      c.step_size.gate = gate;
      c.num_hidden_layers = 1;
      ModelOnDevice m(c, Device::reference, 1, 66);
      perturb(m);
      m.forward_backward();
      const std::vector<double> gradient = ModelOnDevice::values(m.gradients);
      for (const ParameterSpec& spec : m.model.parameters().specs()) {
        if (spec.name.find("b_proj") == std::string::npos) continue;
        const int64_t at = spec.offset + spec.count / 2;
        const double w = ModelOnDevice::at(m.weights.master, at), h = 1e-5;
        ModelOnDevice::set(m.weights.master, at, w + h);
        const double above = m.loss();
        ModelOnDevice::set(m.weights.master, at, w - h);
        const double below = m.loss();
        ModelOnDevice::set(m.weights.master, at, w);
        EXPECT_NEAR((above - below) / (2 * h), gradient[static_cast<size_t>(at)], 1e-6)
            << factor << " " << gate << " " << spec.name;
        EXPECT_NE(gradient[static_cast<size_t>(at)], 0);
      }
    }
  }
}

TEST(LanguageModel, RecomputationChangesMemoryNotOneBit) {
  std::vector<double> gradient, losses;
  std::vector<int64_t> activations;
  for (const Recompute recompute : {Recompute::none, Recompute::mixer, Recompute::block}) {
    ModelOnDevice m(small_config(), Device::cpu, 2, 130, recompute);
    m.forward_backward();
    if (recompute == Recompute::none) {
      gradient = ModelOnDevice::values(m.gradients);
      losses = ModelOnDevice::values(m.losses);
    }
    EXPECT_EQ(ModelOnDevice::values(m.gradients), gradient);
    EXPECT_EQ(ModelOnDevice::values(m.losses), losses);
    activations.push_back(m.activations().high_water());
  }
  EXPECT_LT(activations[1], activations[0]);
  EXPECT_LT(activations[2], activations[1]);
}

TEST(LanguageModel, OneThreadEqualsManyBitForBit) {
  std::vector<double> gradient;
  for (const int threads : {1, 2, 5}) {
    ModelOnDevice m(small_config(), Device::cpu, 3, 130, Recompute::none, threads);
    m.forward_backward();
    if (gradient.empty()) gradient = ModelOnDevice::values(m.gradients);
    EXPECT_EQ(ModelOnDevice::values(m.gradients), gradient) << threads;
  }
}

TEST(LanguageModel, TheMemoryPlanIsTheHighWaterMark) {
  for (const Recompute recompute : {Recompute::none, Recompute::block}) {
    ModelOnDevice m(small_config(), Device::cpu, 2, 130, recompute);
    m.forward_backward();
    m.loss();
    m.model.logits_from(m.context, m.weights, {m.B, m.T, {}}, m.tokens, m.state, m.logits);
    EXPECT_TRUE(m.runtime.memory.as_planned()) << m.runtime.memory.table();
    EXPECT_EQ(m.activations().used(), 0);
    EXPECT_EQ(m.context.scratch->used(), 0);
  }
}

TEST(LanguageModel, NoBitCrossesADocumentBoundary) {
  const int64_t T = 140, boundary = 77;
  for (const Device device : {Device::reference, Device::cpu}) {
    std::vector<double> losses[2], gradients[2];
    for (int other = 0; other < 2; ++other) {
      ModelOnDevice m(small_config(), device, 1, T);
      m.use_reset = true;
      for (int64_t t = 0; t < T; ++t) m.reset.as<uint8_t>()[t] = t == boundary;
      for (int64_t t = 0; t < boundary;
           ++t) {  // another first document, and none of it is a target
        if (other) m.tokens.as<int32_t>()[t] = static_cast<int32_t>((t * 5 + 1) % 32);
        m.targets.as<int32_t>()[t] = -1;
      }
      m.forward_backward();
      const auto all = ModelOnDevice::values(m.losses);
      losses[other].assign(all.begin() + boundary, all.end());
      for (const ParameterSpec& spec : m.model.parameters().specs())
        if (spec.name.find("embeddings") == std::string::npos)
          for (int64_t i = 0; i < spec.count; ++i)
            gradients[other].push_back(ModelOnDevice::at(m.gradients, spec.offset + i));
    }
    EXPECT_EQ(losses[0], losses[1]) << name_of(device);
    EXPECT_EQ(gradients[0], gradients[1]) << name_of(device);
  }
}

TEST(LanguageModel, DecodingFollowsAFullForward) {
  for (const Device device : {Device::reference, Device::cpu}) {
    const int64_t T = 90;
    ModelOnDevice m(small_config(), device, 1, T);
    perturb(m, 0.05);
    for (const int64_t n : {1, 2, 63, 64, 65, 89, 90}) {
      LanguageModel::clear(m.context, m.state);
      const View prefix(m.tokens.data, DType::i32, {n});
      m.model.logits_from(m.context, m.weights, {1, n, {}}, prefix, m.state, m.logits);
      const std::vector<double> full = ModelOnDevice::values(m.logits);
      LanguageModel::clear(m.context, m.state);
      for (int64_t t = 0; t < n; ++t)
        m.model.logits_from(m.context, m.weights, {1, 1, {}}, View(m.tokens.as<int32_t>() + t, {1}),
                            m.state, m.logits);
      EXPECT_LT(relative_rms(ModelOnDevice::values(m.logits), full),
                device == Device::reference ? 1e-10 : 1e-4)
          << n;
    }
  }
}

}  // namespace
}  // namespace kla
