// Sampling: greedy, top-k, top-p and temperature against the probabilities they promise; generation
// with the recurrence against full forwards.
#include "eval/generator.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "model/runtime.h"
#include "tests/model/model_fixture.h"

namespace kla {
namespace {

std::map<int32_t, double> frequencies(const std::vector<float>& logits, const Sampling& sampling) {
  const RandomStream random(11, "test");
  std::map<int32_t, double> share;
  const int n = 20000;
  for (int i = 0; i < n; ++i)
    share[sample_token(logits.data(), static_cast<int64_t>(logits.size()), sampling, random,
                       static_cast<uint64_t>(i))] += 1.0 / n;
  return share;
}

TEST(SampleToken, GreedyTakesTheFirstOfTheLargest) {
  const std::vector<float> logits = {0.f, 3.f, 3.f, -1.f};
  const RandomStream random(1, "test");
  EXPECT_EQ(sample_token(logits.data(), 4, {.temperature = 0}, random, 0), 1);
}

TEST(SampleToken, FollowsSoftmaxAndTemperature) {
  const std::vector<float> logits = {0.f, 1.f, 2.f, 0.5f};
  for (const double temperature : {0.5, 1.0, 2.0}) {
    double sum = 0;
    for (float x : logits) sum += std::exp(static_cast<double>(x) / temperature);
    const auto share = frequencies(logits, {.temperature = temperature});
    for (const auto& [id, f] : share)
      EXPECT_NEAR(
          f, std::exp(static_cast<double>(logits[static_cast<size_t>(id)]) / temperature) / sum,
          4 * 0.5 / std::sqrt(20000.0));
  }
}

TEST(SampleToken, TopKAndTopPCutTheTail) {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.4f), std::log(0.3f),
                                     std::log(0.2f)};
  const auto top2 = frequencies(logits, {.top_k = 2});
  ASSERT_EQ(top2.size(), 2u);
  EXPECT_NEAR(top2.at(1), 0.4 / 0.7, 0.02);
  const auto nucleus = frequencies(logits, {.top_p = 0.65});  // 0.4 + 0.3 reach it
  ASSERT_EQ(nucleus.size(), 2u);
  EXPECT_NEAR(nucleus.at(2), 0.3 / 0.7, 0.02);
  EXPECT_EQ(frequencies(logits, {.top_p = 1e-9}).size(), 1u);
}

TEST(Generator, GreedyContinuationEqualsFullForwards) {
  const ModelConfig config = testing::small_config();
  LanguageModel model(config);
  DeviceConfig device;
  device.backend = "cpu";
  device.threads = 2;
  Runtime runtime(device);
  Weights weights;
  std::unique_ptr<Generator> generator;
  runtime.set_up(
      [&] {
        weights = runtime.allocate_weights(model.parameters());
        generator = std::make_unique<Generator>(runtime.context, runtime.memory["decoding"], model,
                                                weights);
      },
      [&] { generator->plan(); });
  initialize(model.parameters(), weights.master, 3);
  generator->restart();

  std::vector<int32_t> text = {5, 9, 1, 30, 7};
  generator->read(text);
  const auto n = static_cast<size_t>(generator->position());
  EXPECT_EQ(n, text.size());
  for (int i = 0; i < 100; ++i) text.push_back(generator->next({.temperature = 0}));
  const std::vector<float> decoded(generator->logits(), generator->logits() + config.vocab_size);

  for (size_t length = n; length < text.size(); length += 33) {
    generator->restart();
    generator->read(std::vector<int32_t>(text.begin(), text.begin() + static_cast<long>(length)));
    EXPECT_EQ(sample_token(generator->logits(), config.vocab_size, {.temperature = 0},
                           RandomStream(0, ""), 0),
              text[length]);
  }
  generator->restart();
  generator->read(text);
  double error = 0, size = 0;
  for (size_t i = 0; i < decoded.size(); ++i) {
    error += std::pow(static_cast<double>(decoded[i] - generator->logits()[i]), 2);
    size += std::pow(static_cast<double>(decoded[i]), 2);
  }
  EXPECT_LT(std::sqrt(error / size), 1e-4);
  generator->read(std::vector<int32_t>(Generator::kPrefill, 1));  // as much as there is a plan for
  EXPECT_TRUE(runtime.memory.as_planned());
}

}  // namespace
}  // namespace kla
