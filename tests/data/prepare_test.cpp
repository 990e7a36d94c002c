#include "data/prepare.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <filesystem>
#include <map>

#include "data/dataset.h"
#include "data_fixture.h"

namespace kla {
namespace {

namespace fs = std::filesystem;

class PrepareTest : public DataTest {
 protected:
  PrepareTest() {
    write("corpus/a.jsonl", made_up_jsonl(1, 600));
    write("corpus/b.jsonl", made_up_jsonl(2, 400));
    write("corpus/c.txt", made_up_text(3, 500));
    config_.inputs = {path("corpus")};
    config_.output = path("out");
    config_.val_fraction = 0.1;
    config_.tokenizer.vocab_size = 400;
    config_.shard_tokens = 10000;
    config_.threads = 1;
  }
  std::map<std::string, std::string> files_of(const std::string& directory) const {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(directory))
      if (entry.is_regular_file())
        files[fs::relative(entry.path(), directory).string()] = read_file(entry.path().string());
    return files;
  }
  void expect_nothing_written() const {
    EXPECT_FALSE(file_exists(path("out")));
    EXPECT_FALSE(file_exists(path("out.partial")));
  }
  PrepareConfig config_;
};

TEST_F(PrepareTest, TokensAreTheTextOfTheDocuments) {
  const PrepareSummary summary = prepare_dataset(config_);
  EXPECT_FALSE(summary.already_done);
  EXPECT_EQ(summary.counts.train_documents + summary.counts.val_documents, 1001);
  EXPECT_GT(summary.counts.val_documents, 50);
  EXPECT_LT(summary.counts.val_documents, 150);
  const Tokenizer tokenizer = Tokenizer::load(path("out/tokenizer.model"));
  std::multimap<std::string, int> expected, found;
  CorpusReader reader(list_corpus(config_.inputs), {});
  for (std::string text; reader.next(text);) expected.emplace(text, 0);
  int64_t text_bytes = 0;
  for (const char* split : {"train", "val"}) {
    const TokenDataset data =
        TokenDataset::open(path("out/") + split, tokenizer.vocab_size(), Verify::payload);
    data.require_tokenizer(tokenizer.sha256(), "out/tokenizer.model");
    text_bytes += data.text_bytes();
    for (int64_t d = 0; d < data.documents(); ++d) {
      const int64_t first = data.document_start(d), count = data.document_start(d + 1) - first;
      std::vector<int32_t> ids(static_cast<size_t>(count));
      data.read(first, count, ids.data());
      EXPECT_EQ(ids.front(), tokenizer.bos_id());
      EXPECT_EQ(ids.back(), tokenizer.eos_id());
      found.emplace(tokenizer.decode(ids), 0);
    }
  }
  EXPECT_EQ(found, expected);
  EXPECT_EQ(text_bytes, summary.counts.text_bytes);
}

TEST_F(PrepareTest, SameBytesForAnyNumberOfThreads) {
  prepare_dataset(config_);
  const auto one = files_of(path("out"));
  EXPECT_TRUE(one.contains("train/shard-00001.kla"));
  fs::remove_all(path("out"));
  config_.threads = 4;
  prepare_dataset(config_);
  EXPECT_EQ(files_of(path("out")), one);
}

TEST_F(PrepareTest, SplitAndTokenizerDoNotDependOnHowTheTextIsFiled) {
  prepare_dataset(config_);
  const std::string a = read_file(path("corpus/a.jsonl")), b = read_file(path("corpus/b.jsonl"));
  write("other/1.jsonl", b + a);
  write("other/2.txt", read_file(path("corpus/c.txt")));
  PrepareConfig other = config_;
  other.inputs = {path("other")};
  other.output = path("out2");
  prepare_dataset(other);
  EXPECT_EQ(read_file(path("out/tokenizer.model")), read_file(path("out2/tokenizer.model")));
  const TokenDataset x = TokenDataset::open(path("out/val"), 0, Verify::headers);
  const TokenDataset y = TokenDataset::open(path("out2/val"), 0, Verify::headers);
  EXPECT_EQ(x.documents(), y.documents());
  EXPECT_EQ(x.tokens(), y.tokens());
}

TEST_F(PrepareTest, GivenTokenizerAndValidationFiles) {
  config_.tokenizer.path = write("given.model", small_model());
  config_.val_inputs = {write("val.jsonl", made_up_jsonl(9, 30))};
  config_.max_val_documents = 20;
  config_.add_bos = false;
  const PrepareSummary summary = prepare_dataset(config_);
  EXPECT_EQ(summary.counts.train_documents, 1001) << "nothing is taken from the training text";
  EXPECT_EQ(summary.counts.val_documents, 20);
  EXPECT_EQ(read_file(path("out/tokenizer.model")), small_model());
  const TokenDataset data = TokenDataset::open(path("out/val"), 0, Verify::headers);
  int32_t first = -1;
  data.read(0, 1, &first);
  EXPECT_NE(first, 1) << "no bos";
}

TEST_F(PrepareTest, PreparedBeforeIsSkippedAndNeverOverwritten) {
  const PrepareSummary first = prepare_dataset(config_);
  const auto before = files_of(path("out"));
  config_.threads = 2;
  const PrepareSummary again = prepare_dataset(config_);
  EXPECT_TRUE(again.already_done);
  EXPECT_EQ(again.counts.train_tokens, first.counts.train_tokens);
  PrepareConfig other = config_;
  other.tokenizer.vocab_size = 420;
  EXPECT_MENTIONS(error_of(Exit::usage, [&] { prepare_dataset(other); }), "tokenizer.vocab_size");
  write("corpus/b.jsonl", made_up_jsonl(5, 400));
  EXPECT_MENTIONS(error_of(Exit::usage, [&] { prepare_dataset(config_); }), "changed");
  EXPECT_EQ(files_of(path("out")), before);
}

TEST_F(PrepareTest, FoldersOfOthersAreLeftAlone) {
  write("out/precious.txt", "x");
  error_of(Exit::usage, [&] { prepare_dataset(config_); });
  EXPECT_TRUE(file_exists(path("out/precious.txt")));
  fs::remove_all(path("out"));
  write("out.partial/precious.txt", "x");
  error_of(Exit::io, [&] { prepare_dataset(config_); });
  EXPECT_TRUE(file_exists(path("out.partial/precious.txt")));
}

TEST_F(PrepareTest, InterruptedLeavesNothing) {
  const std::atomic<bool> stop = true;
  error_of(Exit::stopped, [&] { prepare_dataset(config_, &stop); });
  expect_nothing_written();
}

TEST_F(PrepareTest, WhatAKilledProcessLeftIsCleared) {
  write("out.partial/.kla-partial", "");
  write("out.partial/train/shard-00000.kla", "half a shard");
  prepare_dataset(config_);
  TokenDataset::open(path("out/train"), 0, Verify::payload);
  EXPECT_FALSE(file_exists(path("out.partial")));
  EXPECT_FALSE(file_exists(path("out/.kla-partial")));
}

TEST_F(PrepareTest, TwoAtOnceAreRefused) {
  const int lock = ::open(write("out.partial/.kla-partial", "").c_str(), O_RDWR);
  ASSERT_EQ(::flock(lock, LOCK_EX), 0);
  EXPECT_MENTIONS(error_of(Exit::io, [&] { prepare_dataset(config_); }), "another process");
  ::close(lock);
  prepare_dataset(config_);
}

TEST_F(PrepareTest, FailuresLeaveNothing) {
  PrepareConfig config = config_;
  config.tokenizer.vocab_size = 30000;
  EXPECT_MENTIONS(error_of(Exit::usage, [&] { prepare_dataset(config); }), "30000");
  expect_nothing_written();

  config = config_;
  config.inputs = {path("nowhere")};
  EXPECT_MENTIONS(error_of(Exit::io, [&] { prepare_dataset(config); }), "nowhere");

  config = config_;
  config.tokenizer.path = path("nowhere.model");
  EXPECT_MENTIONS(error_of(Exit::io, [&] { prepare_dataset(config); }), "nowhere.model");

  config = config_;
  config.bad_documents = "stop";
  write("corpus/bad.jsonl", "{\"text\": 1}\n");
  EXPECT_MENTIONS(error_of(Exit::data, [&] { prepare_dataset(config); }), "bad.jsonl:1");
  expect_nothing_written();
  fs::remove(path("corpus/bad.jsonl"));

  config = config_;
  config.val_fraction = 1e-9;
  EXPECT_MENTIONS(error_of(Exit::data, [&] { prepare_dataset(config); }), "validation");
  expect_nothing_written();
  write("corpus/cut.jsonl.gz", "\x1f\x8b\x08");
  EXPECT_MENTIONS(error_of(Exit::data, [&] { prepare_dataset(config_); }), "cut.jsonl.gz");
  expect_nothing_written();
}

TEST_F(PrepareTest, NoValidationIfNoneIsAskedFor) {
  config_.val_fraction = 0;
  const PrepareSummary summary = prepare_dataset(config_);
  EXPECT_EQ(summary.counts.train_documents, 1001);
  EXPECT_FALSE(file_exists(path("out/val")));
}

}  // namespace
}  // namespace kla
