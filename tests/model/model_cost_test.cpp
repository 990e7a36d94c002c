// The cost of a model against counts by hand.
#include "model/model_cost.h"

#include <gtest/gtest.h>

namespace kla {
namespace {

ModelConfig small() {
  ModelConfig c;
  c.hidden_size = 64;
  c.num_hidden_layers = 3;
  c.num_heads = 2;
  c.key_head_dim = 16;
  c.value_head_dim = 32;
  c.intermediate_size = 128;
  c.vocab_size = 256;
  return c;
}

TEST(ModelCost, StateIsOneMatrixForEachHeadAndLayer) {
  EXPECT_EQ(count_cost(small(), 128).state_values, 3 * 2 * 16 * 32);
}

// Every weight matrix meets a token in three products: forward, its input's gradient and its own.
TEST(ModelCost, ProductsAreSixFlopsAWeightAndTheMixerComesOnTop) {
  const ModelConfig c = small();
  const int64_t D = 64, keys = 2 * 16, values = 2 * 32;
  const int64_t layer = 2 * D * keys + 3 * D * values + 2 * D * 2 + 3 * D * 128;
  const auto weights = static_cast<double>(3 * layer + D * 256);
  const double flops = count_cost(c, 128).training_flops_per_token;
  EXPECT_GT(flops, 6 * weights);
  EXPECT_LT(flops, 9 * weights);  // small heads: the chunks of the mixer weigh
  ModelConfig wide = c;
  wide.intermediate_size += 64;
  EXPECT_NEAR(count_cost(wide, 128).training_flops_per_token - flops, 6.0 * 3 * 3 * D * 64, 1e-6);
}

TEST(ModelCost, ATokenCostsTheSameInLongerSequences) {
  EXPECT_DOUBLE_EQ(count_cost(small(), 128).training_flops_per_token,
                   count_cost(small(), 1024).training_flops_per_token);
}

}  // namespace
}  // namespace kla
