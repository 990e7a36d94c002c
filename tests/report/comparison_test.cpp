// The verdict over seeds: as often right as it says, in the words that the numbers allow.
#include "report/comparison.h"

#include <gtest/gtest.h>

#include <cmath>

#include "synthetic_run.h"

namespace kla::report {
namespace {

// A run with nothing but what a comparison reads.
RunData result(const std::string& variant, int64_t seed, double loss) {
  RunData run;
  run.name = variant + "-s" + std::to_string(seed);
  run.variant = variant;
  run.directory = run.name;
  run.config = {{"run.seed", std::to_string(seed)},
                {"data.shuffle_seed", std::to_string(seed)},
                {"data.seq_len", "512"},
                {"model.step_size.rule", variant}};
  run.record = {{"data.val", "windows"}, {"parameters.total", "1000"}};
  run.status = {{"state", "finished"}};
  run.train.push_back({.step = 100, .tokens = 1e5});
  run.evals.push_back({.step = 100,
                       .tokens = 1e5,
                       .length = 512,
                       .loss = loss,
                       .low = std::nan(""),
                       .high = std::nan(""),
                       .bits_per_byte = 1,
                       .targets = 5000});
  return run;
}

RunData diverged(const std::string& variant, int64_t seed) {
  RunData run = result(variant, seed, 1.0);  // a low loss before it diverged
  run.evals.back().step = run.train.back().step = 50;
  run.status = {{"state", "failed"}, {"exit_code", "5"}};
  return run;
}

Comparison compare(const std::vector<RunData>& runs, const std::string& baseline = "a") {
  return compare_variants(runs, summarize(runs), baseline);
}

// Losses of `seeds` paired runs of a base and of variants with known effects: a seed moves all of
// them together, each run has noise of its own.
std::vector<RunData> simulated_sweep(Noise& noise, int64_t seeds,
                                     const std::vector<double>& effects) {
  constexpr double kSeed = 0.05, kRun = 0.01;
  std::vector<RunData> runs;
  for (int64_t seed = 1; seed <= seeds; ++seed) {
    const double together = 4 + kSeed * noise.next();
    for (size_t v = 0; v < effects.size(); ++v)
      runs.push_back(result(std::string(1, static_cast<char>('a' + v)), seed,
                            together + effects[v] + kRun * noise.next()));
  }
  return runs;
}

TEST(Comparison, TheIntervalCoversTheTruthIn93To97PercentOfSweeps) {
  constexpr int kSweeps = 2000;
  for (const int64_t seeds : {3, 5, 10}) {
    Noise noise(1000 + seeds);
    int covered = 0, of_mean = 0, wrong = 0, found = 0;
    for (int sweep = 0; sweep < kSweeps; ++sweep) {
      const Comparison c = compare(simulated_sweep(noise, seeds, {0, 0.02, 0}));
      const Effect &effect = c.variants[1].effect, &none = c.variants[2].effect;
      covered += std::abs(effect.alone.mean - 0.02) <= *effect.alone.half_width;
      of_mean += std::abs(c.variants[0].loss.mean - 4) <= *c.variants[0].loss.half_width;
      wrong += none.separable();
      found += effect.separable() && effect.alone.mean > 0;
    }
    for (const int hits : {covered, of_mean, kSweeps - wrong}) {
      EXPECT_GE(hits, 0.93 * kSweeps) << seeds << " seeds";
      EXPECT_LE(hits, 0.97 * kSweeps) << seeds << " seeds";
    }
    EXPECT_GT(found, (seeds == 10 ? 0.9 : 0.2) * kSweeps);  // 0.02 +- t 0.014 / sqrt(n)
  }
}

TEST(Comparison, AllIntervalsTogetherHoldInAtLeast95Percent) {
  constexpr int kSweeps = 2000;
  Noise noise(3);
  int all = 0, alone = 0;
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    const Comparison c = compare(simulated_sweep(noise, 5, {0, 0, 0, 0, 0, 0, 0}));
    bool any = false, any_alone = false;
    for (size_t v = 1; v < c.variants.size(); ++v) {
      any = any || c.variants[v].effect.separable_together();
      any_alone = any_alone || c.variants[v].effect.separable();
    }
    all += !any;
    alone += !any_alone;
  }
  EXPECT_GE(all, 0.94 * kSweeps);
  EXPECT_LT(alone, 0.90 * kSweeps);  // what the single intervals do not promise
}

TEST(Comparison, PairingTakesOutWhatASeedDoesToBoth) {
  const Comparison c = compare({result("a", 1, 4.0), result("b", 1, 3.98), result("a", 2, 4.3),
                                result("b", 2, 4.281), result("a", 3, 3.8), result("b", 3, 3.779)});
  EXPECT_NEAR(c.variants[1].effect.alone.mean, -0.02, 1e-12);
  EXPECT_NEAR(*c.variants[1].effect.alone.half_width, 4.302652730 * 0.001 / std::sqrt(3.0), 1e-9);
  EXPECT_EQ(c.variants[1].verdict, "lower by 0.0200 ± 0.0025 nats, 3 seeds");
  EXPECT_EQ(c.variants[0].verdict, "the base");
  EXPECT_GT(*c.variants[1].loss.half_width, 0.5);
}

TEST(Comparison, SaysNoMoreThanTheNumbers) {
  EXPECT_EQ(in_words(judge({0.02, 0.03}, 1), 2, 1), "no verdict: needs 3 paired seeds, has 2");
  EXPECT_EQ(in_words(judge({0.02, -0.03, 0.01}, 1), 3, 1), "not separable with 3 seeds");
  EXPECT_EQ(in_words(judge({0.02, 0.0201, 0.0199}, 6), 3, 6),
            "higher by 0.0200 ± 0.0002 nats, 3 seeds, also among all 6 comparisons");
  const std::vector<double> weak = {0.02, 0.024, 0.028};
  EXPECT_EQ(in_words(judge(weak, 6), 3, 6),
            "higher by 0.0240 ± 0.0099 nats, 3 seeds, but not among all 6 comparisons");
  const Effect six = judge(weak, 6);  // t_2 at 1 - 0.05 / 12
  EXPECT_NEAR(*six.together, 10.8859 * 0.004 / std::sqrt(3.0), 2e-6);
}

TEST(Comparison, ADivergedRunHasNoLoss) {
  const Comparison c =
      compare({result("a", 1, 4), result("a", 2, 4.1), result("a", 3, 4.2), diverged("b", 1),
               result("b", 2, 4.1), result("b", 3, 4.2), diverged("c", 1), diverged("c", 2)});
  EXPECT_EQ(c.variants[1].finished, 2u);
  EXPECT_NEAR(c.variants[1].loss.mean, 4.15, 1e-12);
  EXPECT_EQ(c.variants[1].verdict, "no verdict: needs 3 paired seeds, has 2; 1 of 3 runs diverged");
  EXPECT_EQ(c.variants[2].verdict, "2 of 2 runs diverged");
  EXPECT_TRUE(std::isnan(c.variants[2].loss.mean));
  EXPECT_EQ(c.comparisons, 0u);
}

TEST(Comparison, UnfinishedRunsAndEarlyEvaluationsDoNotCount) {
  std::vector<RunData> runs = {result("a", 1, 4), result("a", 2, 4), result("b", 1, 3)};
  runs[1].status = {{"state", "training"}};
  runs[2].evals.back().step = 90;  // of 100
  const Comparison c = compare(runs);
  EXPECT_EQ(c.variants[0].finished, 1u);
  EXPECT_EQ(c.variants[0].verdict, "the base; 1 of 2 runs not finished");
  EXPECT_EQ(c.variants[1].finished, 0u);
}

TEST(Comparison, DifferentTargetsAreNotCompared) {
  std::vector<RunData> runs = {result("a", 1, 4), result("b", 1, 3), result("a", 2, 4),
                               result("b", 2, 3)};
  runs[1].record[0].second = "other windows";
  runs[3].evals.back().targets = 4999;
  const Comparison c = compare(runs);
  EXPECT_TRUE(c.variants[1].differences.empty());
  ASSERT_EQ(c.notes.size(), 2u);
  EXPECT_NE(c.notes[0].find("b-s1 is not compared with a-s1"), std::string::npos);
}

TEST(Comparison, TheSameSeedTwiceIsOneSeed) {
  const Comparison c = compare({result("a", 1, 4), result("a", 1, 4), result("a", 1, 4),
                                result("b", 1, 3), result("b", 1, 3), result("b", 1, 3)});
  EXPECT_EQ(c.variants[1].differences.size(), 1u);
  EXPECT_FALSE(c.variants[0].loss.half_width.has_value());
}

TEST(Comparison, TextAndCsvHoldARowForEachVariant) {
  const Comparison c = compare(
      {result("b", 1, 3.9), result("a", 1, 4), result("a", 2, 4.1), result("b", 2, 4.01)}, "a");
  EXPECT_EQ(c.base, 1u);
  const std::string text = to_text(c), csv = to_csv(c);
  EXPECT_NE(text.find("n = 5,000 targets a run"), std::string::npos) << text;
  EXPECT_NE(text.find("minus a"), std::string::npos);
  EXPECT_NE(csv.find("\r\nb,2,2,0,3.955,,2,-0.095,,,0,\"no verdict: needs 3 paired seeds, has 2\","
                     "1000,,\r\n"),
            std::string::npos)
      << csv;
}

}  // namespace
}  // namespace kla::report
