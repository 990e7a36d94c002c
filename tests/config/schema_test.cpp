// The schema against the structs: every field is listed, can be set in every spelling, and its name
// is suggested when it is misspelt.
#include "config/schema.h"

#include <gtest/gtest.h>

#include <set>

#include "config/freeze.h"
#include "config/suggest.h"
#include "config/value.h"
#include "config_files.h"
#include "core/philox.h"

namespace kla {
namespace {

// Number of members of an aggregate: how many values its braces take.
struct Anything {
  template <class T>
  operator T() const;
};
template <class Struct, class... Values>
constexpr size_t members() {
  if constexpr (requires { Struct{Values{}..., Anything{}}; }) {
    return members<Struct, Values..., Anything>();
  } else {
    return sizeof...(Values);
  }
}

TEST(Schema, ListsEveryFieldOfTheTrainingConfig) {
  Config config;
  const Schema schema = schema_of(config);
  const size_t leaves = members<RunConfig>() + members<StepSizeConfig>() + members<ModelConfig>() -
                        1 + members<DataConfig>() + members<TrainConfig>() +
                        members<OptimConfig>() + members<ScheduleConfig>() + members<EvalConfig>() +
                        members<CheckpointConfig>() + members<LogConfig>() +
                        members<DeviceConfig>() + members<DistConfig>() +
                        members<NonfiniteConfig>() + members<GuardConfig>() - 1;
  EXPECT_EQ(members<Config>(), 12u);
  EXPECT_EQ(members<RunConfig>(), 5u);
  EXPECT_EQ(schema.fields().size(), leaves);
}

TEST(Schema, ListsEveryFieldOfTheOtherConfigs) {
  PrepareConfig prepare;
  EXPECT_EQ(schema_of(prepare).fields().size(),
            members<PrepareConfig>() - 1 + members<TokenizerConfig>());
  BenchConfig bench;
  EXPECT_EQ(schema_of(bench).fields().size(), members<BenchConfig>() - 2 + members<ModelConfig>() -
                                                  1 + members<StepSizeConfig>() +
                                                  members<DeviceConfig>());
  SweepConfig sweep;
  EXPECT_EQ(schema_of(sweep).fields().size(), members<SweepConfig>());
}

template <class Root>
void expect_distinct_slots(Root config) {
  const Schema schema = schema_of(config);
  const auto* begin = reinterpret_cast<const char*>(&config);
  std::set<const char*> places;
  std::set<std::string> paths;
  for (const Field& field : schema.fields()) {
    const auto* place = std::visit(
        [](const auto* value) { return reinterpret_cast<const char*>(value); }, field.slot);
    EXPECT_TRUE(places.insert(place).second) << field.path;
    EXPECT_TRUE(paths.insert(field.path).second) << field.path;
    EXPECT_TRUE(place >= begin && place < begin + sizeof(Root)) << field.path;
    EXPECT_FALSE(field.doc.empty()) << field.path;
  }
}

TEST(Schema, GivesEveryKeyAFieldOfItsOwn) {
  expect_distinct_slots(Config{});
  expect_distinct_slots(PrepareConfig{});
  expect_distinct_slots(BenchConfig{});
}

// A legal value that differs from the default; "" for keys that have only one.
std::string other_value(const Field& field) {
  const std::string now = spell(field.slot);
  const std::vector<std::string> choices = choices_of(field);
  for (const std::string& choice : choices)
    if (choice != now) return choice;
  if (!choices.empty() || field.traits.min == field.traits.max) return "";
  if (field.path == "model.tie_word_embeddings") return "";
  if (std::holds_alternative<bool*>(field.slot)) return now == "true" ? "false" : "true";
  if (std::holds_alternative<int64_t*>(field.slot) || std::holds_alternative<uint64_t*>(field.slot))
    return now == "1024" ? "2048" : "1024";
  if (std::holds_alternative<double*>(field.slot)) return now == "0.25" ? "0.5" : "0.25";
  if (std::holds_alternative<std::string*>(field.slot)) return "other";
  if (std::holds_alternative<std::vector<std::string>*>(field.slot)) return "[one, two]";
  return field.traits.count == 2 ? "[0.25, 0.5]" : "[256, 512]";
}

TEST(Overrides, ThreeSpellingsAreEqualForEveryKeyAndChangeOnlyIt) {
  test::ConfigFiles files;
  const std::string file = files.write("base.yaml", "data: {seq_len: 1}\n");
  Config defaults = load_config(file, {}, Completeness::fragment).config;
  const Schema schema = schema_of(defaults);
  int changed = 0;
  for (const Field& field : schema.fields()) {
    const std::string value = other_value(field), path = field.path;
    if (value.empty()) continue;
    const auto load = [&](const std::vector<std::string>& words) {
      return load_config(file, words, Completeness::fragment).config;
    };
    const Config plain = load({path + "=" + value});
    const std::vector<ConfigDifference> changes = diff_configs(defaults, plain);
    const bool names_the_directory = path == "run.name";
    ASSERT_EQ(changes.size(), names_the_directory ? 2u : 1u) << path;
    EXPECT_EQ(changes[0].path, path);
    EXPECT_EQ(changes[0].after, value) << path;
    EXPECT_TRUE(diff_configs(plain, load({"--" + path + "=" + value})).empty()) << path;
    EXPECT_TRUE(diff_configs(plain, load({"--" + path, value})).empty()) << path;
    ++changed;
  }
  EXPECT_EQ(changed + 4, static_cast<int>(schema.fields().size()));  // mixer, conv, tie, adamw
}

TEST(Overrides, LaterOnesWinAndKeepEqualsSignsAndSpaces) {
  test::ConfigFiles files;
  const std::string file = files.write("base.yaml", "optim: {lr: 1}");
  const LoadedConfig loaded =
      load_config(file,
                  {"optim.lr=2", "--optim.lr=3", "data.train=a b=c",
                   "data.val=", "model.step_size={rule: gdn, eps: 1}", "eval.lengths=[1k, 2k]"},
                  Completeness::fragment);
  EXPECT_EQ(loaded.config.optim.lr, 3);
  EXPECT_EQ(loaded.config.data.train, "a b=c");
  EXPECT_EQ(loaded.config.data.val, "");
  EXPECT_EQ(loaded.config.model.step_size.rule, "gdn");
  EXPECT_EQ(loaded.config.model.step_size.eps, 1);
  EXPECT_EQ(loaded.config.eval.lengths, (std::vector<int64_t>{1000, 2000}));
  EXPECT_EQ(loaded.overrides[1], "optim.lr=3");
  const std::vector<Origin>& history = loaded.assignments.at("optim.lr");
  ASSERT_EQ(history.size(), 3u);
  EXPECT_EQ(history[0].label, file + ":1:13");
  EXPECT_EQ(history[2].label, "command line");
  EXPECT_EQ(history[2].spelt, "3");
}

// One random edit: drop, double, replace or swap a letter.
std::string edited(std::string word, const RandomStream& random, uint64_t& draw) {
  const auto below = [&](size_t n) { return static_cast<size_t>(random.bits(draw++) % n); };
  const size_t at = below(word.size());
  const char letter = static_cast<char>('a' + below(26));
  switch (below(4)) {
    case 0:
      return word.erase(at, 1);
    case 1:
      return word.insert(at, 1, letter);
    case 2:
      word[at] = letter;
      return word;
    default:
      if (at + 1 < word.size()) std::swap(word[at], word[at + 1]);
      return word;
  }
}

template <class Root>
void expect_suggestions(Root config) {
  const Schema schema = schema_of(config);
  const RandomStream random(11, "typos");
  uint64_t draw = 0;
  int typos = 0, right = 0;
  for (const Field& field : schema.fields()) {
    const size_t dot = field.path.rfind('.');
    const std::string section = dot == std::string::npos ? "" : field.path.substr(0, dot);
    const std::string name = field.path.substr(dot == std::string::npos ? 0 : dot + 1);
    for (int i = 0; i < 100; ++i) {
      std::string typo = edited(name, random, draw);
      if (i % 2 == 1 && !typo.empty()) typo = edited(typo, random, draw);
      const std::string path = Schema::join(section, typo);
      if (typo.empty() || schema.find(path) || schema.is_section(path)) continue;
      ++typos;
      const std::vector<std::string> guesses = suggest_keys(schema, section, typo);
      right += !guesses.empty() && guesses[0] == field.path;
    }
  }
  EXPECT_GE(typos, 1000);
  EXPECT_GE(right, typos * 9 / 10) << right << " of " << typos;
}

TEST(Suggest, FindsNineInTenTyposOfOneOrTwoEdits) {
  expect_suggestions(Config{});
  expect_suggestions(PrepareConfig{});
  expect_suggestions(BenchConfig{});
}

TEST(Suggest, EditDistance) {
  EXPECT_EQ(edit_distance("", "abc"), 3u);
  EXPECT_EQ(edit_distance("lr", "rl"), 1u);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
  EXPECT_EQ(edit_distance("warmup", "wramupp"), 2u);
}

TEST(Suggest, LeavesForeignWordsAlone) {
  Config config;
  EXPECT_TRUE(suggest_keys(schema_of(config), "optim", "zzzzzzzzzz").empty());
  EXPECT_TRUE(suggest_keys(schema_of(config), "", std::string(1 << 20, 'a')).empty());
}

TEST(Choices, RegisteredOnesAreCheckedAndAliasesMadeCanonical) {
  test::ConfigFiles files;
  const std::string file =
      files.write("ops.yaml", "ops: [rms_norm, norm]\nmodel: {num_heads: 1}\n");
  EXPECT_EQ(load_bench_config(file).config.ops, (std::vector<std::string>{"rms_norm", "norm"}));
  register_choices("ops", {{"rms_norm", {"norm"}}, {"matmul", {}}});
  EXPECT_EQ(load_bench_config(file).config.ops, (std::vector<std::string>{"rms_norm", "rms_norm"}));
  const std::string error = test::error_of([&] { load_bench_config(file, {"ops=[matmull]"}); });
  EXPECT_NE(error.find("one of rms_norm, matmul, got 'matmull'"), std::string::npos) << error;
  EXPECT_NE(error.find("did you mean 'matmul'?"), std::string::npos) << error;
  register_choices("ops", {});
  EXPECT_NO_THROW(load_bench_config(file, {"ops=[matmull]"}));
}

}  // namespace
}  // namespace kla
