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

namespace kla {

struct TokenizerTraining {
  int64_t vocab_size = 32000;
  double character_coverage = 0.99995;  // share of characters with a piece; the rest become bytes
  int64_t sample_bytes = 32 << 20;      // text taken from the start of the shuffled documents
  uint64_t seed = 1;
};

class Tokenizer {
 public:
  static Tokenizer load(const std::string& path);  // Error{io}, Error{data}
  // The bytes of a model file; `name` stands for it in messages.
  static Tokenizer from_bytes(std::string model, const std::string& name);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  int64_t vocab_size() const;           // N, ids are 0 .. N-1
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
  struct Model;
  explicit Tokenizer(std::unique_ptr<Model> model);
  std::unique_ptr<Model> model_;
};

// Trains a model on `sentences` (called until it returns false) and returns the model file's bytes,
// a pure function of the sentences and the settings. Error{usage} if the vocabulary does not fit
// the text.
std::string train_tokenizer(const TokenizerTraining& training,
                            const std::function<bool(std::string&)>& next_sentence);

}  // namespace kla
