#include "data/tokenizer.h"

#include <cstring>

#include "data_fixture.h"

namespace kla {
namespace {

class TokenizerTest : public DataTest {
 protected:
  Tokenizer tokenizer_ = Tokenizer::from_bytes(small_model(), "small");
};

const std::vector<std::string> kHardTexts = {
    "",
    " ",
    "  two  spaces, three   spaces ",
    "plain words over the linear state",
    "tabs\tand\nnewlines\n\n  indented\n and trailing \n",
    "\nstarts with a newline",
    " \n space before a newline \nand no space after",
    "digits 1234567890 0.001 1e-6",
    "größe café naïve",
    "emoji \xF0\x9F\x98\x80\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x94\xAC and "
    "\xE4\xB8\xAD\xE6\x96\x87",
    "control \x01\x7f characters",
    std::string("a NUL \0 inside", 14),
    "<s> </s> <unk> <0x41> as text",
    "averyveryveryveryveryveryveryveryveryveryveryveryverylongword next",
};

TEST_F(TokenizerTest, DecodeGivesBackTheText) {
  for (const std::string& text : kHardTexts)
    EXPECT_EQ(tokenizer_.decode(tokenizer_.encode(text)), text);
}

TEST_F(TokenizerTest, WordByWordGivesTheIdsOfTheLibrary) {
  std::vector<std::string> texts = kHardTexts;
  for (uint64_t seed = 0; seed < 50; ++seed) texts.push_back(made_up_text(seed, 300));
  texts.push_back(
      "a\xE2\x96\x81 b \xE2\x96\x81 c \xE2\x96\x81\xE2\x96\x81 d");  // the space mark itself
  const std::string alphabet = "  \n\nab\xC3\xA4";
  const RandomStream random(7, "spaces and newlines");
  for (uint64_t i = 0; i < 2000; ++i) {
    std::string text;
    for (uint64_t j = 0; j < 12; ++j) {
      const char c = alphabet[random.bits(i * 12 + j) % 6];
      text += c;
    }
    texts.push_back(text);
  }
  Encoder encoder(tokenizer_);
  for (int pass = 0; pass < 2; ++pass)  // the second one answers from memory
    for (const std::string& text : texts) {
      std::vector<int32_t> ids;
      encoder.encode(text, ids);
      EXPECT_EQ(ids, tokenizer_.encode(text)) << testing::PrintToString(text);
    }
}

TEST_F(TokenizerTest, TokenBytesAddUpToTheText) {
  const std::vector<int32_t> bytes = tokenizer_.token_bytes();
  ASSERT_EQ(static_cast<int64_t>(bytes.size()), tokenizer_.vocab_size());
  EXPECT_EQ(bytes[static_cast<size_t>(tokenizer_.bos_id())], 0);
  EXPECT_EQ(bytes[static_cast<size_t>(tokenizer_.eos_id())], 0);
  for (const std::string& text : kHardTexts) {
    int64_t sum = 0;
    for (const int32_t id : tokenizer_.encode(text)) sum += bytes[static_cast<size_t>(id)];
    const int64_t prefix = text.empty() ? 0 : 1;  // the space before the first word
    EXPECT_EQ(sum, static_cast<int64_t>(text.size()) + prefix) << text;
  }
}

TEST_F(TokenizerTest, LlamaIds) {
  EXPECT_EQ(tokenizer_.vocab_size(), 400);
  EXPECT_EQ(tokenizer_.unk_id(), 0);
  EXPECT_EQ(tokenizer_.bos_id(), 1);
  EXPECT_EQ(tokenizer_.eos_id(), 2);
  EXPECT_EQ(tokenizer_.piece(3), "<0x00>");
  EXPECT_EQ(tokenizer_.piece(258), "<0xFF>");
  for (const int32_t id : tokenizer_.encode("123"))
    EXPECT_LE(tokenizer_.token_bytes()[static_cast<size_t>(id)], 1) << "digits stay apart";
}

TEST_F(TokenizerTest, ControlPiecesInTextAreOnlyText) {
  for (const int32_t id : tokenizer_.encode("<s></s><unk>")) {
    EXPECT_NE(id, tokenizer_.bos_id());
    EXPECT_NE(id, tokenizer_.eos_id());
  }
}

TEST_F(TokenizerTest, TrainingTwiceGivesTheSameModel) {
  const auto train = [] {
    TokenizerConfig settings;
    settings.vocab_size = 330;
    uint64_t i = 0;
    return train_tokenizer(settings, [&i](std::string& text) {
      text = made_up_text(i, 100);
      return i++ < 20;
    });
  };
  EXPECT_EQ(train(), train());
}

TEST_F(TokenizerTest, VocabularyThatDoesNotFitIsReadable) {
  const auto train = [](int64_t vocab_size) {
    TokenizerConfig settings;
    settings.vocab_size = vocab_size;
    bool given = false;
    train_tokenizer(settings, [&given](std::string& text) {
      text = "only a few words and characters here";
      return !std::exchange(given, true);
    });
  };
  EXPECT_MENTIONS(error_of(Exit::usage, [&] { train(20000); }), "is more than this text has");
  EXPECT_MENTIONS(error_of(Exit::usage, [&] { train(100); }), "vocab_size = 100");
  EXPECT_MENTIONS(error_of(Exit::usage, [&] { train(262); }), "is too small for the characters");
}

TEST_F(TokenizerTest, LongLinesTrain) {
  TokenizerConfig settings;
  settings.vocab_size = 300;
  bool given = false;
  const std::string model = train_tokenizer(settings, [&given](std::string& text) {
    for (uint64_t i = 0; i < 30; ++i) text += made_up_text(i, 100);
    std::erase(text, '\n');
    text += std::string(10000, 'x');
    return !std::exchange(given, true);
  });
  EXPECT_EQ(Tokenizer::from_bytes(model, "long").vocab_size(), 300);
}

TEST_F(TokenizerTest, IdsBeyondTheVocabularyAreRefused) {
  EXPECT_MENTIONS(error_of(Exit::data, [&] { tokenizer_.decode({5, 400}); }), "400");
  EXPECT_MENTIONS(error_of(Exit::data, [&] { tokenizer_.decode({-1}); }), "-1");
}

TEST_F(TokenizerTest, DamagedModelsAreRefused) {
  error_of(Exit::io, [&] { Tokenizer::load(path("missing.model")); });
  const auto refused = [](const std::string& bytes) {
    return error_of(Exit::data, [&] { Tokenizer::from_bytes(bytes, "bad.model"); });
  };
  EXPECT_MENTIONS(refused(""), "bad.model");
  EXPECT_MENTIONS(refused("this is no protobuf at all, only a line of text"), "bad.model");
  EXPECT_MENTIONS(refused(small_model().substr(0, 1000)), "bad.model");
  // The piece <unk> made a normal one: none is left. Field 3 (kind), value 2.
  std::string no_unknown = small_model();
  const size_t kind = no_unknown.find("\x18\x02");
  ASSERT_NE(kind, std::string::npos);
  no_unknown[kind + 1] = 1;
  EXPECT_MENTIONS(refused(no_unknown), "no unknown piece");
  // A normalisation table (field 3 of the model, field 2 of the spec): what crashes the library.
  EXPECT_MENTIONS(refused(small_model() + std::string("\x1a\x04\x12\x02zz", 6)), "normalisation");
  // Normalisation that eats spaces: field 4 = 1.
  EXPECT_MENTIONS(refused(small_model() + std::string("\x1a\x02\x20\x01", 4)), "spaces");
}

TEST_F(TokenizerTest, MutatedModelsNeverCrash) {
  const RandomStream random(3, "mutations");
  Tokenizer original = Tokenizer::from_bytes(small_model(), "original");
  int refused = 0;
  for (uint64_t i = 0; i < 400; ++i) {
    std::string bytes = small_model();
    bytes[random.bits(2 * i) % bytes.size()] ^=
        static_cast<char>(1u << (random.bits(2 * i + 1) % 8));
    try {
      const Tokenizer mutant = Tokenizer::from_bytes(bytes, "mutant");
      EXPECT_NE(mutant.sha256(), original.sha256());
      mutant.decode(mutant.encode(kHardTexts[4]));
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Exit::data);
      ++refused;
    }
  }
  EXPECT_GT(refused, 0);
}

}  // namespace
}  // namespace kla
