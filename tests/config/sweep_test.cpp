// Sweep files: what they expand to, and every mistake at its place.
#include <gtest/gtest.h>

#include <algorithm>

#include "config/sweep_config.h"
#include "config_files.h"

namespace kla {
namespace {

constexpr const char* kBase =
    "data: {train: t, val: v, seq_len: 64}\n"
    "train: {max_tokens: 1k, global_batch_tokens: 128}\n";

const std::string kHead = "base: ../base.yaml\nname: steps\n";

class SweepFile : public ::testing::Test {
 protected:
  SweepFile() {
    files_.write("base.yaml", kBase);
    register_choices("model.step_size.rule", {{"kla", {}}, {"gdn", {"l2"}}});
  }
  ~SweepFile() override { register_choices("model.step_size.rule", {}); }
  // A sweep file of the two lines above and `rest`.
  std::string write(const std::string& rest) {
    return files_.write("sub/sweep.yaml", kHead + rest);
  }
  std::string error(const std::string& rest) { return error_in(write(rest)); }
  static std::string error_in(const std::string& file) {
    std::string what = test::error_of([&] { load_sweep(file); });
    for (size_t at; (at = what.find(file)) != std::string::npos;)
      what.replace(at, file.size(), "F");
    return what;
  }
  test::ConfigFiles files_;
};

bool holds(const std::vector<std::string>& words, const std::string& word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

TEST_F(SweepFile, ExpandsToVariantsTimesSeeds) {
  const Sweep sweep = load_sweep(
      write("grid: {run.seed: [7, 8, 9]}\n"
            "variants:\n  kla: {}\n  gdn: {model.step_size.rule: l2, optim.lr: 2e-3}\n"));
  EXPECT_EQ(sweep.config.base, files_.path("base.yaml"));
  EXPECT_EQ(sweep.config.dir, "runs/steps");
  EXPECT_EQ(sweep.config.baseline, "kla");
  EXPECT_EQ(sweep.variants, (std::vector<std::string>{"kla", "gdn"}));
  ASSERT_EQ(sweep.runs.size(), 6u);
  EXPECT_EQ(sweep.runs[1].name, "gdn-s7");  // seed by seed
  const SweepRun& last = sweep.runs.back();
  EXPECT_EQ(last.name, "gdn-s9");
  EXPECT_EQ(last.settings,
            (std::vector<std::string>{"model.step_size.rule=gdn", "optim.lr=0.002"}));
  const Config& c = last.loaded.config;
  EXPECT_EQ(c.model.step_size.rule, "gdn");
  EXPECT_EQ(c.optim.lr, 2e-3);
  EXPECT_EQ(c.run.dir, "runs/steps/gdn-s9");
  EXPECT_EQ(c.train.max_tokens, 1000);
}

TEST_F(SweepFile, SeedsArePaired) {
  const Sweep sweep =
      load_sweep(write("grid: {run.seed: [7, 8]}\nvariants: {a: {}, b: {optim.lr: 1}}\n"));
  for (const SweepRun& run : sweep.runs) {
    EXPECT_EQ(run.loaded.config.run.seed, run.seed);
    EXPECT_EQ(run.loaded.config.data.shuffle_seed, run.seed);
    EXPECT_TRUE(holds(run.overrides, "data.shuffle_seed=" + std::to_string(run.seed)));
  }
}

TEST_F(SweepFile, TheGridMultipliesTheVariants) {
  const Sweep sweep = load_sweep(
      write("dir: \"x/{name}\"\nbaseline: a-lr_0.1-seq_factor_inv_t\n"
            "grid: {run.seed: [1], optim.lr: [0.1, 1e-3], model.step_size.seq_factor: [none, "
            "inv_t]}\nvariants: {a: {}}\n"));
  EXPECT_EQ(sweep.variants, (std::vector<std::string>{
                                "a-lr_0.1-seq_factor_none", "a-lr_0.1-seq_factor_inv_t",
                                "a-lr_0.001-seq_factor_none", "a-lr_0.001-seq_factor_inv_t"}));
  EXPECT_EQ(sweep.runs.back().loaded.config.run.dir, "x/steps/a-lr_0.001-seq_factor_inv_t-s1");
  EXPECT_EQ(sweep.runs.back().loaded.config.optim.lr, 1e-3);
}

TEST_F(SweepFile, MistakesStandAtTheirPlace) {
  const std::pair<const char*, const char*> cases[] = {
      // behind the head of two lines
      {"grid: {run.seed: [1]}\nvariants: {a: {}}\nvaraints: {}\n",
       "F:5:1: error: unknown key 'varaints'"},
      {"grid: {run.seed: [1]}\nvariants: {a: {}}\nvaraints: {}\n",
       "note: did you mean 'variants'?"},
      {"grid: {run.seed: [1]}\nvariants:\n  a: {model.step_size.rul: kla}\n",
       "F:5:7: error: unknown key 'model.step_size.rul'"},
      {"grid: {run.seed: [1]}\nvariants:\n  a: {model.step_size.rul: kla}\n",
       "did you mean 'model.step_size.rule'?"},
      {"grid: {run.seed: [1]}\nvariants:\n  a: {model.step_size.rule: gnd}\n",
       "F:5:29: error: 'model.step_size.rule' expects one of kla, gdn, got 'gnd'"},
      {"grid: {run.seed: [1]}\nvariants:\n  a: {optim: {lr: 1}}\n",
       "write the whole key, such as 'optim."},
      {"grid: {run.seed: [1, two]}\nvariants: {a: {}}\n",
       "F:3:22: error: 'run.seed' expects a whole number >= 0, got 'two'"},
      {"grid: {run.seed: [1, 1]}\nvariants: {a: {}}\n", "F:3:22: error: 1 stands twice"},
      {"grid: {run.seed: 3}\nvariants: {a: {}}\n",
       "F:3:18: error: 'run.seed' expects a list of values"},
      {"grid: {run.seed: [1]}\nvariants: {a: {run.seed: 4}}\n",
       "F:4:16: error: a variant cannot choose its seed"},
      {"grid: {run.seed: [1], data.shuffle_seed: [2]}\nvariants: {a: {}}\n",
       "F:3:23: error: 'data.shuffle_seed' is set by the sweep itself"},
      {"grid: {run.seed: [1]}\nvariants: {a: {run.name: x}}\n",
       "'run.name' is set by the sweep itself"},
      {"grid: {run.seed: [1]}\nvariants: {a/b: {}}\n", "F:4:12: error: 'run.name' expects a name"},
      {"grid: {run.seed: [1]}\nvariants: {a: {}, a: {}}\n", "duplicate key 'a'"},
      {"baseline: b\ngrid: {run.seed: [1]}\nvariants: {a: {}}\n",
       "F:3:11: error: 'baseline' = 'b' is not a variant"},
      {"variants: {a: {}}\n", "'grid' names no seeds"},
      {"grid: {run.seed: [1]}\n", "'variants' names none"},
      {"grid: {run.seed: [1]}\nvariants: {a: {data.seq_len: 50}}\n", "run 'a-s1' of F:"},
      {"grid: {run.seed: [1]}\nvariants: {a: {data.seq_len: 50}}\n",
       "is not a multiple of data.seq_len"}};
  for (const auto& [text, words] : cases) {
    const std::string what = error(text);
    EXPECT_NE(what.find(words), std::string::npos)
        << text << "\nwants: " << words << "\ngot: " << what;
  }
}

TEST_F(SweepFile, NeedsABaseAndAMap) {
  const auto whole = [&](const char* text) { return error_in(files_.write("s.yaml", text)); };
  EXPECT_NE(whole("name: x\ngrid: {run.seed: [1]}\nvariants: {a: {}}\n").find("'base' is not set"),
            std::string::npos);
  EXPECT_NE(whole("base: no.yaml\nname: x\ngrid: {run.seed: [1]}\nvariants: {a: {}}\n")
                .find("there is no such file"),
            std::string::npos);
  EXPECT_EQ(whole("[1, 2]\n").find("F:1:1: error: a sweep file is made of 'key: value' lines"), 0u);
  EXPECT_NE(test::error_of([&] { load_sweep(files_.path("none.yaml")); }).find("cannot read it"),
            std::string::npos);
}

TEST_F(SweepFile, IsToldFromOtherConfigs) {
  const std::string file = write("grid: {run.seed: [1]}\nvariants: {a: {}}\n");
  EXPECT_EQ(kind_of_config(file), ConfigKind::sweep);
  EXPECT_EQ(kind_of_config(files_.path("base.yaml")), ConfigKind::training);
}

}  // namespace
}  // namespace kla
