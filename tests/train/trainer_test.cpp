// The training run as a whole, in process: that it learns, that it goes on after a restore as if it
// had never stopped, that every saved item is needed for that, and that nothing but the config
// decides a bit of it.
#include "train/trainer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>

#include "tests/train/tiny_run.h"

namespace kla {
namespace {

using testing::kTinyLength;
using testing::kTinyStep;
using testing::make_tokens;
using testing::Snapshot;
using testing::tiny_config;
using testing::TinyRun;

class Training : public ::testing::Test {
 protected:
  testing::ScratchDirectory scratch;
  TokenDataset train = make_tokens(scratch / "train", 3000, 1);  // 47 windows, the last one short
  TokenDataset val = make_tokens(scratch / "val", 400, 2);
};

TEST_F(Training, OverfitsOneBatch) {
  const TokenDataset one_batch = make_tokens(scratch / "one_batch", kTinyStep + 1, 3);
  Config config = tiny_config(400);
  config.model.hidden_size = 64;
  config.optim.lr = 1e-2;
  config.optim.weight_decay = 0;
  config.checkpoint.interval_tokens = 0;
  TinyRun run(config, one_batch);
  run.run();
  const std::vector<double> losses = run.losses();
  EXPECT_NEAR(losses.front(), std::log(64.0), 0.3);
  EXPECT_LT(losses.back(), 0.01);
}

// ------------------------------------------------------------------------------------- resuming

// Evaluations after steps 4, 8, 12, 16 and 20, a metrics row every third step: what a resumed run
// must remember differs from step to step.
Config eventful_config() {
  Config config = tiny_config(20);
  config.eval.interval_tokens = 4 * kTinyStep - 8;  // the short windows make steps a little smaller
  config.eval.max_tokens = 128;
  config.log.interval_steps = 3;
  config.log.probe_interval_steps = 4;
  return config;
}

struct Ending {
  Snapshot last;
  std::vector<std::string> rows;  // those after the restore
  bool operator==(const Ending&) const = default;
};

class Resuming : public Training {
 protected:
  // The rest of a run from a snapshot, in a new process as far as the Trainer can tell.
  Ending continue_from(const Config& config, const Snapshot& from) {
    TinyRun run(config, train, &val);
    run.restore(from);
    run.run();
    return {run.last(), run.rows()};
  }
};

std::vector<std::string> rows_after(const std::vector<std::string>& rows, int64_t step) {
  std::vector<std::string> found;
  for (const std::string& row : rows)
    if (nlohmann::json::parse(row).at("step") > step) found.push_back(row);
  return found;
}

TEST_F(Resuming, AtAnyStepGivesTheSameBits) {
  for (const int64_t micro_batch_size : {1, 4}) {
    Config config = eventful_config();
    config.train.micro_batch_size = micro_batch_size;
    TinyRun whole(config, train, &val);
    whole.run();
    ASSERT_EQ(whole.snapshots.size(), 20u);
    for (int64_t step = 1; step < 20; ++step) {
      const Ending resumed = continue_from(config, whole.snapshots.at(step));
      EXPECT_EQ(resumed.rows, rows_after(whole.rows(), step)) << step;
      EXPECT_TRUE(resumed.last == whole.last()) << step;
    }
  }
}

TEST_F(Resuming, EverySavedItemIsNeeded) {
  const Config config = eventful_config();
  TinyRun whole(config, train, &val);
  whole.trainer.state().guard.total = 7;
  whole.run();
  ASSERT_EQ(whole.snapshots.at(10).state.evaluated_step, 8);

  struct Drop {
    const char* item;
    int64_t step;
    std::function<void(Snapshot&)> drop;
  };
  auto zero = [](Snapshot& s, const std::string& prefix) {
    for (auto& [name, values] : s.tensors)
      if (name.rfind(prefix, 0) == 0) std::fill(values.begin(), values.end(), 0.0f);
  };
  const std::vector<Drop> drops = {
      {"step", 10, [](Snapshot& s) { s.state.step = 0; }},
      {"updates", 10, [](Snapshot& s) { s.state.updates = 0; }},
      {"tokens", 10, [](Snapshot& s) { s.state.tokens = 0; }},
      {"previous_tokens", 10, [](Snapshot& s) { s.state.previous_tokens = 0; }},
      {"next_sample", 10, [](Snapshot& s) { s.state.next_sample = 0; }},
      {"evaluated_step", 8, [](Snapshot& s) { s.state.evaluated_step = 0; }},
      {"guard.total", 10, [](Snapshot& s) { s.state.guard.total = 0; }},
      {"loss_sum", 10, [](Snapshot& s) { s.state.loss_sum = 0; }},
      {"loss_tokens", 10, [](Snapshot& s) { s.state.loss_tokens = 0; }},
      {"m", 10, [&](Snapshot& s) { zero(s, "exp_avg."); }},
      {"v", 10, [&](Snapshot& s) { zero(s, "exp_avg_sq."); }},
      {"weights", 10, [&](Snapshot& s) { zero(s, "model."); }},
  };
  for (const Drop& d : drops) {
    const Snapshot& from = whole.snapshots.at(d.step);
    const Ending expected{whole.last(), rows_after(whole.rows(), d.step)};
    EXPECT_TRUE(continue_from(config, from) == expected) << "control for " << d.item;
    Snapshot damaged = from;
    d.drop(damaged);
    EXPECT_FALSE(damaged == from) << d.item;
    EXPECT_FALSE(continue_from(config, damaged) == expected) << d.item << " is not needed";
  }
}

// ----------------------------------------------------------------------- what decides the result

TEST_F(Training, IsDecidedByTheConfigAlone) {
  TinyRun reference(tiny_config(12), train);
  reference.run();
  auto expect_same = [&](const std::string& what, const std::function<void(Config&)>& change) {
    Config config = tiny_config(12);
    change(config);
    TinyRun run(config, train);
    run.run();
    EXPECT_EQ(run.rows(), reference.rows()) << what;
    EXPECT_TRUE(run.last() == reference.last()) << what;
  };
  expect_same("again", [](Config&) {});
  expect_same("1 thread", [](Config& c) { c.device.threads = 1; });
  expect_same("2 threads", [](Config& c) { c.device.threads = 2; });
  expect_same("3 threads", [](Config& c) { c.device.threads = 3; });
  expect_same("recompute mixer", [](Config& c) { c.train.recompute = "mixer"; });
  expect_same("recompute block", [](Config& c) { c.train.recompute = "block"; });

  Config other = tiny_config(12);
  other.run.seed = 43;
  TinyRun run(other, train);
  run.run();
  EXPECT_NE(run.rows(), reference.rows()) << "control: the comparison notices another seed";
}

TEST_F(Training, TheSplitIntoMicroBatchesChangesRoundingOnly) {
  Config config = tiny_config(6);
  config.train.micro_batch_size = 4;
  TinyRun whole(config, train);
  whole.run();
  config.train.micro_batch_size = 1;
  TinyRun split(config, train);
  split.run();
  EXPECT_EQ(whole.last().state.next_sample, split.last().state.next_sample);
  EXPECT_EQ(whole.last().state.tokens, split.last().state.tokens);
  const std::vector<double> a = whole.losses(), b = split.losses();
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-5 * a[i]) << "step " << i + 1;
}

TEST_F(Training, ProbesDoNotMoveABit) {
  for (const char* recompute : {"none", "mixer", "block"}) {
    Config config = tiny_config(10);
    config.train.recompute = recompute;
    TinyRun blind(config, train);
    blind.run();
    config.log.probe_interval_steps = 3;
    TinyRun probed(config, train);
    probed.run();
    EXPECT_EQ(probed.losses(), blind.losses()) << recompute;
    EXPECT_TRUE(probed.last() == blind.last()) << recompute;
    EXPECT_TRUE(probed.trainer.memory().as_planned()) << recompute;

    std::vector<std::pair<int64_t, int64_t>> places;
    for (const std::string& text : probed.rows())
      if (const auto row = nlohmann::json::parse(text); row.at("t") == "probe")
        places.emplace_back(row.at("step"), row.at("layer"));
    EXPECT_EQ(places, (std::vector<std::pair<int64_t, int64_t>>{
                          {3, 0}, {3, 1}, {6, 0}, {6, 1}, {9, 0}, {9, 1}}));
    EXPECT_EQ(blind.rows().size(), 10u) << "no probes, no rows but those of the steps";
  }
}

TEST_F(Training, UsesTheMemoryItPlanned) {
  for (const char* recompute : {"none", "mixer", "block"}) {
    Config config = eventful_config();
    config.train.max_tokens = 5 * kTinyStep;
    config.train.recompute = recompute;
    config.eval.lengths = {32, 128};
    TinyRun run(config, train, &val);
    run.run();
    EXPECT_TRUE(run.trainer.memory().as_planned()) << recompute << "\n"
                                                   << run.trainer.memory().table();
  }
}

// The losses of this test itself on a machine with AVX-512. With ONEDNN_MAX_CPU_ISA=SSE41 or AVX2
// they move by less than 1e-6: another machine only rounds otherwise.
TEST_F(Training, FollowsTheCommittedLossCurve) {
  const std::vector<double> golden = {
      4.1739095, 4.1668513, 4.1581471, 4.1542904, 4.1533837, 4.1646735, 4.1460570, 4.1489723,
      4.1396263, 4.1392145, 4.1191358, 4.1194467, 4.0939507, 4.0968524, 4.0983308, 4.0907388,
      4.0956990, 4.0810845, 4.0997408, 4.0911864, 4.0843361, 4.0826383, 4.0962820, 4.0847726};
  Config config = tiny_config(24);
  config.optim.lr = 1e-3;
  TinyRun run(config, train);
  run.run();
  const std::vector<double> losses = run.losses();
  ASSERT_EQ(losses.size(), golden.size()) << ::testing::PrintToString(losses);
  for (size_t i = 0; i < golden.size(); ++i)
    EXPECT_NEAR(losses[i], golden[i], 1e-5 * golden[i]) << "step " << i + 1;
}

// ------------------------------------------------------------------------- the non-finite guard

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TEST_F(Training, SkippedStepsLeaveTheModelUntouched) {
  Config config = tiny_config(8);
  TinyRun run(config, train);
  float* weight = run.trainer.model_tensors().front().view.as<float>() + 5 * 32;  // of id 5
  float healthy = 0;
  run.run([&](int64_t step) {
    if (step == 3) healthy = std::exchange(*weight, kNaN);
    if (step == 5) *weight = healthy;
  });
  const Snapshot &before = run.snapshots.at(3), &poisoned = run.snapshots.at(4);
  const Snapshot &skipped = run.snapshots.at(5), &after = run.snapshots.at(6);
  EXPECT_EQ(poisoned.state.updates, before.state.updates);
  EXPECT_EQ(skipped.state.updates, before.state.updates);
  EXPECT_EQ(skipped.state.next_sample, before.state.next_sample + 8);
  EXPECT_EQ(skipped.state.guard, (GuardState{.consecutive = 2, .total = 2}));
  for (const auto& [name, values] : before.tensors) {
    if (name != run.trainer.model_tensors().front().name) {
      EXPECT_EQ(values, skipped.tensors.at(name)) << name;
    }
  }
  EXPECT_EQ(after.state.guard, (GuardState{.consecutive = 0, .total = 2}));
  EXPECT_EQ(after.state.updates, 4);
  EXPECT_TRUE(std::isfinite(run.losses().back()));
}

TEST_F(Training, AnExplodingRunEndsWithANumericalError) {
  Config config = tiny_config(40);
  config.optim.lr = 1e30;
  config.schedule.warmup_tokens = 0;
  TinyRun run(config, train);
  EXPECT_REFUSED(Exit::numerical, "5 in a row", run.run());
  const Snapshot& last = run.last();  // step of the failure minus one
  EXPECT_EQ(last.state.guard.consecutive, 4);
  EXPECT_EQ(last.tensors, run.snapshots.at(last.state.updates).tensors);

  config.guard.nonfinite.policy = "stop";
  TinyRun strict(config, train);
  EXPECT_REFUSED(Exit::numerical, "1 in a row", strict.run());
}

TEST_F(Training, TheGuardCountsOnAfterARestore) {
  Config config = tiny_config(40);
  TinyRun whole(config, train);
  whole.trainer.model_tensors().front().view.as<float>()[5 * 32] = kNaN;
  EXPECT_REFUSED(Exit::numerical, "step 5:", whole.run());
  const Snapshot from = whole.snapshots.at(3);

  TinyRun resumed(config, train);
  resumed.restore(from);
  EXPECT_REFUSED(Exit::numerical, "step 5:", resumed.run());

  Snapshot forgetful = from;
  forgetful.state.guard.consecutive = 0;
  TinyRun control(config, train);
  control.restore(forgetful);
  EXPECT_REFUSED(Exit::numerical, "step 8:", control.run());
}

}  // namespace
}  // namespace kla
