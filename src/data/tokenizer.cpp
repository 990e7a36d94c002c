#include "data/tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "data/tokenizer_model.h"

namespace kla {
namespace {

constexpr int64_t kMaxModelBytes = 64 << 20;
constexpr const char* kUnknownText = "\xef\xbf\xbd";  // U+FFFD

// The text a piece stands for.
std::string text_of(const Piece& piece) {
  switch (piece.kind) {
    case PieceKind::byte: {
      unsigned value = 0;
      std::sscanf(piece.text.c_str(), "<0x%2X>", &value);
      return std::string(1, static_cast<char>(value));
    }
    case PieceKind::unknown:
      return kUnknownText;
    case PieceKind::normal:
    case PieceKind::user: {
      std::string text = piece.text;
      for (size_t at = 0; (at = text.find(kSpaceMark, at)) != std::string::npos; ++at)
        text.replace(at, kSpaceMark.size(), " ");
      return text;
    }
    case PieceKind::control:
    case PieceKind::unused:
      return "";
  }
  return "";
}

// Where the first word of the text ends: before a newline, or at a single space between two
// characters that are not spaces. No piece reaches over such a place (words_are_separate), so
// encoding the parts gives the ids of the whole.
size_t word_end(std::string_view text) {
  const auto space_at = [&](size_t i) {
    return text[i] == ' ' || text.substr(i, kSpaceMark.size()) == kSpaceMark;
  };
  for (size_t i = 1; i < text.size(); ++i) {
    if (text[i] == '\n') return i;
    if (text[i] != ' ' || i + 1 == text.size()) continue;
    const bool after_space = space_at(i - 1) || (i >= 3 && space_at(i - 3));
    if (!after_space && !space_at(i + 1)) return i;
  }
  return text.size();
}

}  // namespace

struct Tokenizer::Model {
  std::string bytes, sha256, name;
  TokenizerModel parsed;
  std::vector<std::string> texts;  // by id
  sentencepiece::SentencePieceProcessor processor;

  void encode(std::string_view text, std::vector<int32_t>& ids) const {
    std::vector<int> found;
    const auto status = processor.Encode(text, &found);
    KLA_CHECK(status.ok(), status.ToString());
    ids.insert(ids.end(), found.begin(), found.end());
  }
};

Tokenizer Tokenizer::from_bytes(std::string model_bytes, const std::string& name) {
  auto model = std::make_unique<Model>();
  if (static_cast<int64_t>(model_bytes.size()) > kMaxModelBytes)
    throw Error(Exit::data, "tokenizer '" + name + "' is larger than 64 MiB");
  model->parsed = parse_tokenizer_model(model_bytes, name);
  model->sha256 = sha256_hex(model_bytes);
  model->name = name;
  const auto status = model->processor.LoadFromSerializedProto(model_bytes);
  if (!status.ok())
    throw Error(Exit::data, "tokenizer '" + name + "' cannot be loaded: " + status.ToString());
  if (model->processor.eos_id() < 0)
    throw Error(Exit::data, "tokenizer '" + name + "' has no end-of-text id (</s>)",
                "use a model trained with an eos_id");
  KLA_CHECK(static_cast<size_t>(model->processor.GetPieceSize()) == model->parsed.pieces.size(),
            "the library and our reader see the same pieces");
  for (const Piece& piece : model->parsed.pieces) model->texts.push_back(text_of(piece));
  model->bytes = std::move(model_bytes);
  return Tokenizer(std::move(model));
}

Tokenizer Tokenizer::load(const std::string& path) {
  if (!file_exists(path))
    throw Error(Exit::io, "tokenizer '" + path + "' does not exist",
                "correct the path, or leave it out to have `kla data prepare` train one");
  return from_bytes(read_file(path, kMaxModelBytes), path);
}

Tokenizer::Tokenizer(std::unique_ptr<Model> model) : model_(std::move(model)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

int64_t Tokenizer::vocab_size() const {
  return static_cast<int64_t>(model_->texts.size());
}
int32_t Tokenizer::unk_id() const {
  return model_->parsed.unk_id;
}
int32_t Tokenizer::bos_id() const {
  return model_->processor.bos_id();
}
int32_t Tokenizer::eos_id() const {
  return model_->processor.eos_id();
}
const std::string& Tokenizer::sha256() const {
  return model_->sha256;
}
const std::string& Tokenizer::model() const {
  return model_->bytes;
}

bool Tokenizer::is_fallback(int32_t id) const {
  const PieceKind kind = model_->parsed.pieces[static_cast<size_t>(id)].kind;
  return kind == PieceKind::byte || kind == PieceKind::unknown;
}

std::string Tokenizer::piece(int32_t id) const {
  KLA_CHECK(id >= 0 && id < vocab_size(), "token id " + std::to_string(id));
  return model_->parsed.pieces[static_cast<size_t>(id)].text;
}

void Tokenizer::encode(std::string_view text, std::vector<int32_t>& ids) const {
  model_->encode(text, ids);
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  encode(text, ids);
  return ids;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids) const {
  std::string text;
  bool at_start = model_->parsed.add_dummy_prefix;
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab_size())
      throw Error(Exit::data, "token id " + std::to_string(id) + " is beyond the vocabulary of " +
                                  std::to_string(vocab_size()) + " of tokenizer '" + model_->name +
                                  "'");
    std::string_view part = model_->texts[static_cast<size_t>(id)];
    if (part.empty()) continue;
    if (at_start && part.front() == ' ') part.remove_prefix(1);
    at_start = false;
    text += part;
  }
  return text;
}

std::vector<int32_t> Tokenizer::token_bytes() const {
  std::vector<int32_t> bytes;
  for (const std::string& text : model_->texts) bytes.push_back(static_cast<int32_t>(text.size()));
  bytes[static_cast<size_t>(unk_id())] = 0;
  return bytes;
}

Encoder::Encoder(const Tokenizer& tokenizer) : model_(tokenizer.model_.get()) {
  if (model_->parsed.words_are_separate) slots_.resize(kSlots);
}

void Encoder::encode(std::string_view text, std::vector<int32_t>& ids) {
  if (slots_.empty()) return model_->encode(text, ids);
  bool after_space =
      true;  // a word is encoded with the space before it, a text as if one stood there
  while (!text.empty()) {
    if (after_space && text.front() == '\n') ids.push_back(model_->parsed.space_id);
    const size_t end = word_end(text);
    encode_word(text.substr(0, end), ids);
    text.remove_prefix(end);
    after_space = text.starts_with(' ');
    if (after_space) text.remove_prefix(1);
  }
}

// A word at the start of a line comes with its newline, without a space before it.
void Encoder::encode_word(std::string_view word, std::vector<int32_t>& ids) {
  Slot& slot = slots_[xxh3_64(word.data(), word.size()) % kSlots];
  if (slot.bytes == 0 || std::string_view(slot.word, slot.bytes) != word) {
    const size_t first = ids.size();
    model_->encode(word, ids);
    if (word.front() == '\n') ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(first));
    const size_t count = ids.size() - first;
    if (word.size() > Slot::kMaxBytes || count > Slot::kMaxIds) return;
    slot.bytes = static_cast<uint8_t>(word.size());
    slot.count = static_cast<uint8_t>(count);
    word.copy(slot.word, word.size());
    std::copy_n(ids.end() - static_cast<std::ptrdiff_t>(count), count, slot.ids);
    return;
  }
  ids.insert(ids.end(), slot.ids, slot.ids + slot.count);
}

}  // namespace kla
