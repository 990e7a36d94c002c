// kla bench on a tiny model: the operations it counts are those of the model, every op of a step is
// timed, and decoding needs no more memory than planned.
#include "commands/step_bench.h"

#include <gtest/gtest.h>

#include <set>

#include "model/language_model.h"

namespace kla {
namespace {

BenchConfig tiny() {
  BenchConfig config;
  config.model.hidden_size = 32;
  config.model.num_heads = 2;
  config.model.key_head_dim = 8;
  config.model.value_head_dim = 16;
  config.model.intermediate_size = 48;
  config.model.vocab_size = 64;
  config.batch = 2;
  config.seq_len = 70;
  config.repeats = 2;
  config.device = {.backend = "cpu", .dtype = "auto", .threads = 2};
  return config;
}

TEST(StepBench, CountsTheProductsOfTheModel) {
  const BenchConfig config = tiny();
  const StepTimings t = time_training_steps(config);
  double weights = 0;  // each is used in three products of 2 FLOPs a token
  const LanguageModel model(config.model);
  for (const ParameterSpec& spec : model.parameters().specs())
    if (spec.matrix) weights += static_cast<double>(spec.count);
  EXPECT_EQ(t.product_flops(), 6 * weights * static_cast<double>(config.batch * config.seq_len));
  EXPECT_EQ(t.seconds.size(), 2u);
  EXPECT_TRUE(t.memory_as_planned);
  EXPECT_GE(t.sgemm_rate(), std::max(t.library_rate(), t.our_rate()));
}

TEST(StepBench, TimesEveryOpOfAStep) {
  const StepTimings t = time_training_steps(tiny());
  std::set<std::string> timed;
  double ops = 0, steps = 0;
  for (const OpTiming& op : t.ops) {
    timed.insert(op.op);
    ops += op.total;
    EXPECT_GT(op.calls, 0) << op.op;
    EXPECT_GT(op.cost.bytes, 0) << op.op;
    EXPECT_LE(2 * op.best, op.total) << op.op;
  }
  for (double s : t.seconds) steps += s;
  EXPECT_LT(ops, steps);
  timed.insert("delta_step");  // decoding only
  for (const OpBase* op : OpBase::all()) EXPECT_TRUE(timed.contains(op->name())) << op->name();
}

TEST(StepBench, DecodesAtTheWantedPositions) {
  const std::vector<DecodeTiming> timings = time_decoding(tiny(), {200, 3});
  ASSERT_EQ(timings.size(), 2u);
  EXPECT_EQ(timings[0].position, 3);
  EXPECT_EQ(timings[1].position, 200);
  for (const DecodeTiming& t : timings) EXPECT_GT(t.seconds, 0);
}

}  // namespace
}  // namespace kla
