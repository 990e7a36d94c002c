// Tokenizer: text to token ids and back, by a SentencePiece model (Llama-compatible BPE with byte
// fallback and no normalisation, so decode(encode(text)) == text). A damaged model often still
// loads as silently another tokenizer, so a model is known by its SHA-256 and checked before use.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "config/prepare_config.h"

namespace kla {

class Tokenizer {
 public:
  static Tokenizer load(const std::string& path);  // Error{io}, Error{data}
  // The bytes of a model file; `name` stands for it in messages.
  static Tokenizer from_bytes(std::string model, const std::string& name);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  int64_t vocab_size() const;           // N, ids are 0 .. N-1
  bool is_fallback(int32_t id) const;   // a byte piece or the unknown piece: no piece fitted
  int32_t unk_id() const;               // stands for text that has no piece
  int32_t bos_id() const;               // -1: this model has none
  int32_t eos_id() const;               // end of text, always there
  const std::string& sha256() const;    // of the model file
  const std::string& model() const;     // its bytes
  std::string piece(int32_t id) const;  // for display; a leading space is U+2581

  // Both are safe to call from several threads.
  void encode(std::string_view text, std::vector<int32_t>& ids) const;  // appends; no bos or eos
  std::vector<int32_t> encode(std::string_view text) const;
  std::string decode(const std::vector<int32_t>& ids) const;  // control ids give no text

  // Bytes of text each id stands for, 0 for control ids: what bits per byte divides by.
  std::vector<int32_t> token_bytes() const;

 private:
  friend class Encoder;
  struct Model;
  explicit Tokenizer(std::unique_ptr<Model> model);
  std::unique_ptr<Model> model_;
};

// Encodes much text: remembers the ids of words it has met, which is some times as fast and gives
// the same ids. One per thread; the tokenizer must outlive it.
class Encoder {
 public:
  explicit Encoder(const Tokenizer& tokenizer);
  void encode(std::string_view text, std::vector<int32_t>& ids);  // appends

 private:
  // A word's place is given by its hash; a newcomer takes the place of the one before it.
  struct Slot {
    static constexpr size_t kMaxBytes = 31, kMaxIds = 15;
    uint8_t bytes = 0, count = 0;  // bytes = 0: free
    char word[kMaxBytes];
    int32_t ids[kMaxIds];
  };
  static constexpr size_t kSlots = 1 << 18;  // 24 MiB

  void encode_word(std::string_view word, std::vector<int32_t>& ids);

  const Tokenizer::Model* model_;
  std::vector<Slot> slots_;
};

// Trains a model of settings.vocab_size ids on the documents that `next_document` gives until it
// returns false, and returns the bytes of the model file: a pure function of documents and
// settings. Error{usage} if the vocabulary does not fit the text.
std::string train_tokenizer(const TokenizerConfig& settings,
                            const std::function<bool(std::string&)>& next_document);

}  // namespace kla
