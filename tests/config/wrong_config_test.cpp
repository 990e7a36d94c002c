// Wrong configs, each with the place and the words its error must have. What users type wrong is
// the most common thing this program meets.
#include <gtest/gtest.h>

#include <ctime>

#include "config/load.h"
#include "config_files.h"

namespace kla {
namespace {

struct Case {
  const char* yaml;
  int line, column;
  const char* message;
  const char* note = "";
};

const Case kUnknownKeys[] = {
    {"optm: {lr: 1}", 1, 1, "unknown key 'optm'", "did you mean 'optim'?"},
    {"lr: 1e-3", 1, 1, "unknown key 'lr'", "did you mean 'optim.lr'?"},
    {"run:\n  nmae: x", 2, 3, "unknown key 'run.nmae'", "did you mean 'run.name'?"},
    {"optim:\n  lr: 1\n  leaning_rate: 1e-3", 3, 3, "unknown key 'optim.leaning_rate'",
     "(known keys here: betas, decay, eps, lr, name, weight_decay)"},
    {"optim:\n  learning_rate: 1e-3", 2, 3, "unknown key 'optim.learning_rate'",
     "did you mean 'optim.lr'?"},
    {"model:\n  step_size:\n    rul: kla", 3, 5, "unknown key 'model.step_size.rul'",
     "did you mean 'model.step_size.rule'?"},
    {"guard: {nonfinite: {polcy: stop}}", 1, 21, "unknown key 'guard.nonfinite.polcy'",
     "did you mean 'guard.nonfinite.policy'?"},
    {"model: {n_layer: 3}", 1, 9, "unknown key 'model.n_layer'",
     "did you mean 'model.num_hidden_layers'?"},
    {"model: {qk_norm: l2}", 1, 9, "unknown key 'model.qk_norm'",
     "did you mean 'model.step_size.rule'?"},
    {"train: {batch_size: 3}", 1, 9, "unknown key 'train.batch_size'",
     "did you mean 'train.micro_batch_size'?"},
    {"train: {max_iters: 3}", 1, 9, "unknown key 'train.max_iters'",
     "did you mean 'train.max_tokens'?"},
    {"optim: {warmup_tokens: 3}", 1, 9, "unknown key 'optim.warmup_tokens'",
     "did you mean 'schedule.warmup_tokens'?"},
    {"schedule: {warmup: 3}", 1, 12, "unknown key 'schedule.warmup'",
     "did you mean 'schedule.warmup_tokens'?"},
    {"optim.lr: 3", 1, 1, "unknown key 'optim.lr'", "keys are nested: write 'optim:'"},
    {"train: {zzzzzzzzzz: 3}", 1, 9, "unknown key 'train.zzzzzzzzzz'",
     "note: (known keys here: global_batch_tokens, grad_clip"},
    {"run: {defaults: [x.yaml]}", 1, 7, "unknown key 'run.defaults'"},
    {"\xC3\xA9: {\xC3\xA9t\xC3\xA9: 1}", 1, 1, "unknown key '\xC3\xA9'"},
    {"run: {name: a, \xC3\xA9t\xC3\xA9: 1}", 1, 16, "unknown key 'run.\xC3\xA9t\xC3\xA9'"},
    {"run: {tags: ['\xC3\xA9'], x: 2}", 1, 20, "unknown key 'run.x'"},
};

const Case kWrongTypes[] = {
    {"run: x", 1, 6, "'run' expects a section of 'key: value' lines", "keys here: dir, name"},
    {"run: [x]", 1, 6, "'run' expects a section"},
    {"- run", 1, 1, "a config file is made of 'key: value' lines"},
    {"optim:\n  lr: abc", 2, 7, "'optim.lr' expects a number >= 0, got 'abc'", "numbers look like"},
    {"optim: {lr: }", 1, 13, "'optim.lr' expects a number >= 0, got nothing"},
    {"optim: {lr: ~}", 1, 13, "'optim.lr' expects a number >= 0, got nothing"},
    {"optim: {lr: [1]}", 1, 13, "'optim.lr' expects a number >= 0, got a list"},
    {"optim: {lr: {x: 1}}", 1, 13, "'optim.lr' expects a number >= 0, got a section"},
    {"optim: {lr: '1e-3'}", 1, 13, "got '1e-3'", "quotes make it text"},
    {"optim: {betas: 0.9}", 1, 16, "'optim.betas' expects a list of 2 values", "write [0.9]"},
    {"optim: {betas: [0.9, x]}", 1, 22, "'optim.betas' expects a list of 2 values", "numbers look"},
    {"optim: {betas: [0.9]}", 1, 16, "each a number in [0, 1), got a list", "it has 1 elements"},
    {"log: {csv: yes}", 1, 12, "'log.csv' expects true or false, got 'yes'", "write true"},
    {"log: {csv: Off}", 1, 12, "'log.csv' expects true or false, got 'Off'", "write false"},
    {"log: {csv: 1}", 1, 12, "'log.csv' expects true or false, got '1'", "write true"},
    {"log: {csv: 'true'}", 1, 12, "'log.csv' expects true or false"},
    {"train: {max_tokens: 010}", 1, 21, "got '010'", "leading zero"},
    {"train: {max_tokens: 0x10}", 1, 21, "got '0x10'", "numbers look like"},
    {"train: {max_tokens: 1.5}", 1, 21, "a whole number of tokens", "not a whole number"},
    {"train: {max_tokens: 1e-3}", 1, 21, "a whole number of tokens", "not a whole number"},
    {"train: {max_tokens: 1.5B2}", 1, 21, "got '1.5B2'", "numbers look like"},
    {"train: {max_tokens: 1__0}", 1, 21, "got '1__0'", "numbers look like"},
    {"train: {max_tokens: 64K}", 1, 21, "got '64K'", "15B"},
    {"train: {max_tokens: 1e30}", 1, 21, "got '1e30'", "too large"},
    {"run: {seed: -1}", 1, 13, "'run.seed' expects a whole number >= 0, got '-1'", "negative"},
    {"run: {seed: 18446744073709551616}", 1, 13, "'run.seed'", "too large"},
    {"run: {seed: 1 2}", 1, 13, "'run.seed' expects a whole number >= 0, got '1 2'"},
};

const Case kWrongValues[] = {
    {"optim: {lr: -1}", 1, 13, "'optim.lr' expects a number >= 0, got '-1'"},
    {"optim: {lr: 1e400}", 1, 13, "got '1e400'", "beyond the range"},
    {"optim: {lr: .inf}", 1, 13, "got '.inf'"},
    {"optim: {lr: .nan}", 1, 13, "got '.nan'"},
    {"optim: {eps: 0}", 1, 14, "'optim.eps' expects a number > 0, got '0'"},
    {"optim: {betas: [0.9, 1]}", 1, 22, "each a number in [0, 1), got '1'"},
    {"schedule: {min_lr_ratio: 1.5}", 1, 26, "expects a number in [0, 1], got '1.5'"},
    {"schedule: {name: cosin}", 1, 18, "expects one of cosine, constant, wsd, got 'cosin'",
     "did you mean 'cosine'?"},
    {"run: {resume: maybe}", 1, 15, "expects one of auto, never, must"},
    {"run: {name: .hidden}", 1, 13, "a name of letters, digits", ""},
    {"run: {name: a/b}", 1, 13, "a name of letters, digits", ""},
    {"run: {name: \"a\\nb\"}", 1, 13, "a name of letters", "line break"},
    {"run: {dir: 'runs/{nam}'}", 1, 12, "'run.dir' holds {nam}", "{name} and {seed}"},
    {"model: {mixer: mamba2}", 1, 16, "'model.mixer' expects 'gated_delta', got 'mamba2'"},
    {"model: {conv_size: 3}", 1, 20, "'model.conv_size' expects a whole number of tokens = 4"},
    {"model: {num_heads: 0}", 1, 20, "'model.num_heads' expects a whole number in [1, 10000]"},
    {"model: {step_size: {rule: 'a b'}}", 1, 27, "'model.step_size.rule' expects a name"},
    {"checkpoint: {keep_last: 1}", 1, 25, "'checkpoint.keep_last' expects a whole number in [2"},
    {"eval: {lengths: [512, 0]}", 1, 23, "'eval.lengths' expects a list of values"},
};

const Case kCrossField[] = {
    {"model: {tie_word_embeddings: false}", 1, 30, "'model.tie_word_embeddings' must be true"},
    {"data: {seq_len: 100}\ntrain: {global_batch_tokens: 1000, micro_batch_size: 4}", 2, 30,
     "'train.global_batch_tokens' = 1000 is not a multiple of data.seq_len * "
     "train.micro_batch_size = 100 * 4 = 400",
     "nearest global_batch_tokens: 800 or 1200; or, with its 10 samples, micro_batch_size 1, 2, 5 "
     "or 10"},
    {"data: {seq_len: 512}\ntrain: {global_batch_tokens: 1000}", 2, 30, "is not a multiple of",
     "nearest global_batch_tokens: 512 or 1024"},
    {"train: {max_tokens: 100}\nschedule: {warmup_tokens: 101}", 2, 27,
     "'schedule.warmup_tokens' = 101 is longer than the run: train.max_tokens = 100"},
    {"train: {max_tokens: 100}\nschedule: {name: wsd, warmup_tokens: 50, decay_tokens: 51}", 2, 56,
     "'schedule.warmup_tokens' + 'schedule.decay_tokens' = 50 + 51", "at most 50 tokens"},
};

const Case kNotStrictYaml[] = {
    {"run: {name: a}\nrun: {seed: 1}", 2, 1, "duplicate key 'run'", "first given on line 1"},
    {"run:\n  seed: 1\n  name: a\n  seed: 2", 4, 3, "duplicate key 'seed'", "on line 2"},
    {"run: {seed: 1}\n---\nrun: {seed: 2}", 2, 1, "a second document"},
    {"run: &x {seed: 1}", 1, 6, "anchors (&) and aliases (*)", "'defaults:'"},
    {"run: {tags: &x [a], name: *x}", 1, 13, "anchors (&) and aliases (*)"},
    {"run: {seed: !!int 1}", 1, 13, "tags (!)"},
    {"run: {seed: ! 1}", 1, 13, "tags (!)"},
    {"run: !x {seed: 1}", 1, 6, "tags (!)"},
    {"run:\n  <<: {seed: 1}", 2, 3, "merge keys (<<)", "'defaults:'"},
    {"run: {[a]: 1}", 1, 7, "a key must be a word"},
    {"run: {seed: 1", 1, 6, "not valid YAML", "not closed"},
    {"run:\n\tseed: 1", 2, 1, "not valid YAML", "indent with spaces"},
    {"run:\n  seed: 1\n name: x", 3, 2, "not valid YAML", "indentation"},
    {"run: {name: a: b}", 1, 6, "not valid YAML", "needs quotes"},
    {"run:\n  name: a\x01", 2, 10, "control character or invalid UTF-8"},
    {"run: {name: \xFF}", 1, 13, "control character or invalid UTF-8"},
    {"run: {name: \xC0\x80}", 1, 13, "control character or invalid UTF-8"},
    {"defaults: x.yaml", 1, 11, "'defaults' expects a list of files", "write 'defaults: [FILE"},
    {"defaults: [[x.yaml]]", 1, 12, "'defaults' expects a list of files"},
    {"defaults: [gone.yaml]", 1, 12, "there is no such file"},
};

void expect_error(const test::ConfigFiles& files, const Case& wrong) {
  SCOPED_TRACE(wrong.yaml);
  const std::string file = files.write("wrong.yaml", wrong.yaml);
  const std::clock_t start = std::clock();  // processor time: the machine may be busy
  const std::string error = test::fragment_error(file);
  const double spent = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  const std::string place =
      file + ":" + std::to_string(wrong.line) + ":" + std::to_string(wrong.column) + ": error: ";
  EXPECT_EQ(error.substr(0, place.size()), place) << error;
  EXPECT_NE(error.substr(0, error.find('\n')).find(wrong.message), std::string::npos) << error;
  EXPECT_NE(error.find(wrong.note), std::string::npos) << error;
  EXPECT_NE(error.find("\n1 error; nothing was started."), std::string::npos) << error;
  EXPECT_LT(spent, 0.05);
}

TEST(WrongConfig, UnknownKeys) {
  test::ConfigFiles files;
  for (const Case& wrong : kUnknownKeys) expect_error(files, wrong);
}
TEST(WrongConfig, WrongTypes) {
  test::ConfigFiles files;
  for (const Case& wrong : kWrongTypes) expect_error(files, wrong);
}
TEST(WrongConfig, WrongValues) {
  test::ConfigFiles files;
  for (const Case& wrong : kWrongValues) expect_error(files, wrong);
}
TEST(WrongConfig, KeysThatDisagree) {
  test::ConfigFiles files;
  for (const Case& wrong : kCrossField) expect_error(files, wrong);
}
TEST(WrongConfig, NotStrictYaml) {
  test::ConfigFiles files;
  for (const Case& wrong : kNotStrictYaml) expect_error(files, wrong);
}

TEST(WrongConfig, ShowsTheLineWithACaret) {
  test::ConfigFiles files;
  const std::string file = files.write("kla.yaml", "optim:\n  lr: 1e-3\n  leaning_rate: 1e-3\n");
  EXPECT_EQ(test::fragment_error(file),
            file +
                ":3:3: error: unknown key 'optim.leaning_rate'\n"
                "    3 |   leaning_rate: 1e-3\n"
                "      |   ^~~~~~~~~~~~\n"
                "note: did you mean 'optim.lr'?  (known keys here: betas, decay, eps, lr, "
                "name, weight_decay)\n"
                "1 error; nothing was started.");
}

TEST(WrongConfig, CaretStandsUnderItsWordInUnicodeAndLongLines) {
  test::ConfigFiles files;
  const std::string padding(300, 'x');
  const std::string file = files.write(
      "long.yaml", "run: {name: a, tags: ['\xC3\xA9\xE2\x82\xAC', " + padding + "], bogus: 1}");
  const std::string error = test::fragment_error(file);
  const size_t first = error.find('\n') + 1, second = error.find('\n', first) + 1;
  const std::string text = error.substr(first, second - first);
  const size_t caret = error.substr(second).find('^');
  EXPECT_EQ(text.substr(caret, 5), "bogus") << error;
  EXPECT_LT(text.size(), 200u);
}

TEST(WrongConfig, ReportsSeveralErrorsAtOnceUpToTwenty) {
  test::ConfigFiles files;
  std::string error = test::fragment_error(
      files.write("two.yaml", "optim: {lr: x}\nrun: {nmae: y}\ntrain: {max_tokens: 1}\n"));
  EXPECT_NE(error.find("two.yaml:1:13: error:"), std::string::npos);
  EXPECT_NE(error.find("two.yaml:2:7: error:"), std::string::npos);
  EXPECT_NE(error.find("2 errors; nothing was started."), std::string::npos);

  std::string many = "run:\n";
  for (int i = 0; i < 50; ++i) many += "  bogus" + std::to_string(i) + ": 1\n";
  error = test::fragment_error(files.write("many.yaml", many));
  EXPECT_NE(error.find("many.yaml:21:3: error:"), std::string::npos);
  EXPECT_EQ(error.find("many.yaml:22:3: error:"), std::string::npos);
  EXPECT_NE(error.find("20 errors or more; nothing was started."), std::string::npos);
}

TEST(WrongConfig, OneMistakeGivesOneError) {
  test::ConfigFiles files;
  // The misspelt key would also make max_tokens missing and the warm-up too long.
  const std::string file =
      files.write("t.yaml",
                  "data: {train: d}\ntrain: {max_token: 1B, global_batch_tokens: 512}\n"
                  "schedule: {warmup_tokens: 1M}\n");
  const std::string error = test::error_of([&] { load_config(file); });
  EXPECT_NE(error.find("unknown key 'train.max_token'"), std::string::npos) << error;
  EXPECT_NE(error.find("\n1 error; nothing was started."), std::string::npos) << error;
}

TEST(WrongConfig, NamesWhatARunNeeds) {
  test::ConfigFiles files;
  const std::string file = files.write("t.yaml", "run: {name: a}\ndata: {train: ''}\n");
  const std::string error = test::error_of([&] { load_config(file); });
  EXPECT_NE(error.find(file + ":2:15: error: 'data.train' is not set"), std::string::npos) << error;
  EXPECT_NE(error.find(file + ": error: 'train.max_tokens' is not set"), std::string::npos);
  EXPECT_NE(error.find("3 errors; nothing was started."), std::string::npos);
  EXPECT_EQ(test::fragment_error(file), "");
}

TEST(WrongConfig, OverridesAreNamedAsTyped) {
  test::ConfigFiles files;
  const std::string file = files.write("t.yaml", "run: {name: a}");
  EXPECT_EQ(test::fragment_error(file, {"optim.lr=abc"}).substr(0, 112),
            "command line: error: 'optim.lr' expects a number >= 0, got 'abc'\n"
            "      | optim.lr=abc\n"
            "      |          ^~~\nnote:");
  const std::string typo = test::fragment_error(file, {"--optm.lr", "1"});
  EXPECT_NE(typo.find("      | --optm.lr 1\n      |   ^~~~~~~\n"), std::string::npos) << typo;
  EXPECT_NE(typo.find("did you mean 'optim.lr'?"), std::string::npos) << typo;
  const auto contains = [&](const std::vector<std::string>& words, const char* message) {
    const std::string error = test::fragment_error(file, words);
    EXPECT_NE(error.find(message), std::string::npos) << words[0] << ": " << error;
  };
  contains({"--optim.lr"}, "'--optim.lr' has no value");
  contains({"optim.lr"}, "'optim.lr' has no value");
  contains({"=1"}, "unknown key ''");
  contains({".x=1"}, "unknown key 'x'");
  contains({"optim.=1"}, "unknown key 'optim.'");
  contains({"optim.lr.x=1"}, "unknown key 'optim.lr'");
  contains({"optim.lr=[1"}, "not valid YAML");
  contains({"optim.lr=*x"}, "not valid YAML");
  contains({"optim.lr=&x 1"}, "anchors");
  contains({"optim.lr=1\n"}, "control character");
  contains({"optim=1"}, "'optim' expects a section");
  contains({"defaults=[x]"}, "unknown key 'defaults'");
  contains({"run.dir=runs/{date}"}, "'run.dir' holds {date}");
}

TEST(WrongConfig, FilesThatAreNone) {
  test::ConfigFiles files;
  std::string error = test::fragment_error(files.path("gone.yaml"));
  EXPECT_NE(error.find("gone.yaml: error: cannot read"), std::string::npos) << error;
  EXPECT_NE(error.find("there is no such file"), std::string::npos) << error;
  error = test::fragment_error(files.path(""));
  EXPECT_NE(error.find("not a regular file"), std::string::npos) << error;
}

TEST(WrongConfig, OtherLayersPointAtTheSamePlaces) {
  test::ConfigFiles files;
  const std::string file = files.write("t.yaml", "model: {vocab_size: 100}");
  const LoadedConfig loaded = load_config(file, {"run.seed=7"}, Completeness::fragment);
  const auto refuse = [&](const char* key) {
    return test::error_of([&] { config_error(loaded, key, "does not fit", "because"); });
  };
  EXPECT_EQ(refuse("model.vocab_size").find(file + ":1:21: error: does not fit\n"), 0u);
  EXPECT_EQ(refuse("run.seed").find("command line: error: does not fit\n      | run.seed=7\n"), 0u);
  EXPECT_EQ(refuse("optim.lr"), file +
                                    ": error: does not fit\nnote: because\n"
                                    "1 error; nothing was started.");
}

}  // namespace
}  // namespace kla
