#include "data/dataset.h"

#include <filesystem>

#include "core/hash.h"
#include "data/dataset_writer.h"
#include "data_fixture.h"

namespace kla {
namespace {

class DatasetTest : public DataTest {
 protected:
  // `documents` documents of 1 .. 17 tokens, several shards; returns all tokens.
  std::vector<int32_t> make(const std::string& name, int64_t vocab_size, int64_t documents = 40,
                            const std::string& tokenizer = sha256_hex("tokenizer")) {
    DatasetWriter writer(path(name), vocab_size, tokenizer, 100);
    const RandomStream random(1, name);
    std::vector<int32_t> all;
    starts_.clear();
    uint64_t draw = 0;
    for (int64_t d = 0; d < documents; ++d) {
      std::vector<int32_t> ids(1 + random.bits(draw++) % 17);
      for (int32_t& id : ids)
        id = static_cast<int32_t>(random.bits(draw++) % static_cast<uint64_t>(vocab_size));
      writer.add_document(ids.data(), static_cast<int64_t>(ids.size()), 10);
      starts_.push_back(static_cast<int64_t>(all.size()));
      all.insert(all.end(), ids.begin(), ids.end());
    }
    writer.finish({});
    return all;
  }
  std::string damage(const std::string& file, const std::function<void(std::string&)>& edit) {
    std::string bytes = read_file(path(file));
    edit(bytes);
    write(file, bytes);
    return path(file);
  }
  std::string open_error(const std::string& name, Verify verify = Verify::headers) {
    return error_of(Exit::data, [&] { TokenDataset::open(path(name), 0, verify); });
  }
  std::vector<int64_t> starts_;
};

TEST_F(DatasetTest, GivesBackWhatWasWritten) {
  for (const int64_t vocab_size : {1000, 70000}) {  // uint16 and uint32
    const std::string name = "d" + std::to_string(vocab_size);
    const std::vector<int32_t> expected = make(name, vocab_size);
    const TokenDataset data = TokenDataset::open(path(name), vocab_size, Verify::payload);
    ASSERT_EQ(data.tokens(), static_cast<int64_t>(expected.size()));
    EXPECT_EQ(data.documents(), 40);
    EXPECT_EQ(data.text_bytes(), 400);
    EXPECT_EQ(data.vocab_size(), vocab_size);
    EXPECT_TRUE(file_exists(path(name) + "/shard-00002.kla")) << "the test wants several shards";
    for (int64_t first = 0; first < data.tokens(); first += 13) {  // also across shards
      const int64_t count = std::min<int64_t>(57, data.tokens() - first);
      std::vector<int32_t> ids(static_cast<size_t>(count));
      data.read(first, count, ids.data());
      EXPECT_TRUE(std::equal(ids.begin(), ids.end(), expected.begin() + first)) << first;
    }
  }
}

TEST_F(DatasetTest, KnowsWhereDocumentsStart) {
  make("d", 1000);
  const TokenDataset data = TokenDataset::open(path("d"), 0, Verify::headers);
  std::vector<uint8_t> expected(static_cast<size_t>(data.tokens()), 0);
  for (const int64_t start : starts_) expected[static_cast<size_t>(start)] = 1;
  for (int64_t first = 0; first < data.tokens(); first += 7) {
    const int64_t count = std::min<int64_t>(40, data.tokens() - first);
    std::vector<uint8_t> flags(static_cast<size_t>(count), 9);
    data.document_starts(first, count, flags.data());
    EXPECT_TRUE(std::equal(flags.begin(), flags.end(), expected.begin() + first)) << first;
  }
  int64_t document = -1;
  for (int64_t token = 0; token < data.tokens(); ++token) {
    document += expected[static_cast<size_t>(token)];
    ASSERT_EQ(data.document_of(token), document);
    EXPECT_EQ(data.document_start(document), starts_[static_cast<size_t>(document)]);
  }
  EXPECT_EQ(data.document_start(data.documents()), data.tokens());
}

TEST_F(DatasetTest, IdentityIsThatOfTheContent) {
  const auto identity = [&](const std::string& name) {
    return TokenDataset::open(path(name), 0, Verify::headers).identity();
  };
  make("d", 1000);
  const std::string before = identity("d");
  std::filesystem::rename(path("d"), path("moved"));
  EXPECT_EQ(identity("moved"), before);
  make("d", 1000, 41);
  EXPECT_NE(identity("d"), before);
}

TEST_F(DatasetTest, TruncatedShardIsNamed) {
  make("d", 1000);
  damage("d/shard-00001.kla", [](std::string& bytes) { bytes.pop_back(); });
  EXPECT_MENTIONS(open_error("d"), "shard-00001.kla");
  damage("d/shard-00001.kla", [](std::string& bytes) { bytes.resize(1000); });
  EXPECT_MENTIONS(open_error("d"), "cut short");
  std::filesystem::remove(path("d/shard-00001.kla"));
  EXPECT_MENTIONS(error_of(Exit::io, [&] { TokenDataset::open(path("d"), 0, Verify::headers); }),
                  "shard-00001.kla");
}

TEST_F(DatasetTest, EveryFlippedBitIsFound) {
  make("d", 1000, 12);
  const std::string file = "d/shard-00000.kla";
  const std::string good = read_file(path(file));
  const RandomStream random(5, "flips");
  for (uint64_t i = 0; i < 300; ++i) {
    const size_t limit = i % 2 ? good.size() : 200;  // half of them in the fields of the header
    const size_t byte = random.bits(2 * i) % limit;
    damage(file, [&](std::string& bytes) {
      bytes = good;
      bytes[byte] ^= static_cast<char>(1u << (random.bits(2 * i + 1) % 8));
    });
    EXPECT_MENTIONS(open_error("d", Verify::payload), "shard-00000.kla") << "byte " << byte;
  }
}

TEST_F(DatasetTest, TokenBeyondTheVocabularyIsFoundWhileReading) {
  const std::vector<int32_t> expected = make("d", 1000);
  damage("d/shard-00000.kla", [](std::string& bytes) {
    bytes[4096 + 2 * 7] = '\xe8';  // token 7 becomes 1000
    bytes[4096 + 2 * 7 + 1] = '\x03';
  });
  const TokenDataset data = TokenDataset::open(path("d"), 0, Verify::headers);
  std::vector<int32_t> ids(50);
  data.read(8, 40, ids.data());  // the rest is still good
  const std::string message = error_of(Exit::data, [&] { data.read(0, 50, ids.data()); });
  EXPECT_MENTIONS(message, "shard-00000.kla");
  EXPECT_MENTIONS(message, "token id 1000 at offset 4110");
}

TEST_F(DatasetTest, ShardThatShrinksWhileInUse) {
  make("d", 1000);
  const TokenDataset data = TokenDataset::open(path("d"), 0, Verify::headers);
  std::filesystem::resize_file(path("d/shard-00000.kla"), 4100);
  std::vector<int32_t> ids(50);
  EXPECT_MENTIONS(error_of(Exit::data, [&] { data.read(0, 50, ids.data()); }), "shorter");
}

TEST_F(DatasetTest, MixedUpFilesAreRefused) {
  make("a", 1000);
  make("b", 1000, 41);
  make("c", 1000, 40, sha256_hex("another tokenizer"));
  const auto copy = [&](const std::string& from, const std::string& to) {
    std::filesystem::copy_file(path(from), path(to),
                               std::filesystem::copy_options::overwrite_existing);
  };
  copy("b/shard-00001.kla", "a/shard-00001.kla");
  EXPECT_MENTIONS(open_error("a"), "shard-00001.kla");
  copy("c/dataset.json", "b/dataset.json");
  open_error("b");
  damage("c/dataset.json", [](std::string& text) { text.resize(text.size() / 2); });
  EXPECT_MENTIONS(open_error("c"), "dataset.json");
  damage("c/dataset.json",
         [](std::string& text) { text = "{\"format\": \"kla-dataset\", \"version\": 2}"; });
  EXPECT_MENTIONS(open_error("c"), "version");
}

TEST_F(DatasetTest, WrongVocabularyTokenizerOrFolder) {
  make("d", 1000);
  EXPECT_MENTIONS(
      error_of(Exit::data, [&] { TokenDataset::open(path("d"), 999, Verify::headers); }), "1000");
  const TokenDataset data = TokenDataset::open(path("d"), 1024, Verify::headers);
  data.require_tokenizer(sha256_hex("tokenizer"), "the checkpoint");
  EXPECT_MENTIONS(
      error_of(Exit::data, [&] { data.require_tokenizer(sha256_hex("other"), "the checkpoint"); }),
      "the checkpoint");
  EXPECT_MENTIONS(error_of(Exit::io, [&] { TokenDataset::open(path("no"), 0, Verify::headers); }),
                  "no");
}

}  // namespace
}  // namespace kla
