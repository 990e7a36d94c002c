// Every registered step-size rule in a run: it continues bit for bit, and keys of no length or of
// 1e15 leave it finite where its write gain is bounded, or end it where it is not.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/train/tiny_run.h"

namespace kla::testing {
namespace {

class RuleInARun : public ::testing::TestWithParam<int> {
 protected:
  const RuleInfo& rule() const { return rule_info(GetParam()); }
  Config config(int64_t steps) const {
    Config c = tiny_config(steps);
    c.model.step_size.rule = rule().name;
    return c;
  }

  ScratchDirectory scratch;
  TokenDataset train = make_tokens(scratch / "train", 3000, 1);
};

TEST_P(RuleInARun, ResumesWithTheSameBits) {
  TinyRun whole(config(6), train), resumed(config(6), train);
  whole.run();
  resumed.restore(whole.snapshots.at(3));
  resumed.run();
  EXPECT_TRUE(resumed.last() == whole.last());
  EXPECT_FALSE(whole.last() == whole.snapshots.at(5)) << "control: the last step changed something";
}

// Scales the keys, and moves a learned scalar to where it stops nothing (lambda = 1e-26).
void set_keys(Trainer& trainer, float scale) {
  int found = 0;
  for (NamedView& tensor : trainer.model_tensors()) {
    float* x = tensor.view.as<float>();
    if (tensor.name.ends_with("k_conv1d.weight")) {
      for (int64_t i = 0; i < tensor.view.size(); ++i) x[i] *= scale;
      ++found;
    }
    if (tensor.name.ends_with("learned_norm_logit")) std::fill_n(x, tensor.view.size(), -60.0f);
  }
  ASSERT_GT(found, 0);
}

void expect_healthy(TinyRun& run, const std::string& what) {
  run.run();
  EXPECT_EQ(run.last().state.guard.total, 0) << what;
  for (double loss : run.losses()) EXPECT_TRUE(std::isfinite(loss)) << what;
}

TEST_P(RuleInARun, KeysOfNoLength) {
  TinyRun run(config(3), train);
  set_keys(run.trainer, 0);
  expect_healthy(run, "zero keys");
}

TEST_P(RuleInARun, HugeKeys) {
  TinyRun run(config(8), train);
  set_keys(run.trainer, 1e15f);
  if (rule().stable()) {
    expect_healthy(run, "keys of 1e15");
  } else if (rule().max_gain == kUnboundedGain) {
    EXPECT_REFUSED(Exit::numerical, "5 in a row", run.run());
  }
}

INSTANTIATE_TEST_SUITE_P(Rules, RuleInARun, ::testing::Range(0, kRuleCount),
                         [](const auto& rule) { return std::string(rule_info(rule.param).name); });

}  // namespace
}  // namespace kla::testing
