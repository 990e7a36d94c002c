#include <sentencepiece_trainer.h>

#include <algorithm>
#include <string>
#include <unordered_map>

#include "core/error.h"
#include "core/thread_pool.h"
#include "core/utf8.h"
#include "data/tokenizer.h"

namespace kla {
namespace {

constexpr size_t kMaxSentence = 4096;  // bytes; SentencePiece leaves out what is longer
constexpr int64_t kControlAndBytes = 3 + 256;

// Hands documents to the trainer as sentences: lines, cut again where they are long.
class Sentences final : public sentencepiece::SentenceIterator {
 public:
  explicit Sentences(const std::function<bool(std::string&)>& next_document)
      : next_document_(next_document) {
    Next();
  }
  bool done() const override { return done_; }
  const std::string& value() const override { return sentence_; }
  sentencepiece::util::Status status() const override { return {}; }

  void Next() override {
    do {
      while (rest_.empty()) {
        if (!next_document_(document_)) {
          done_ = true;
          return;
        }
        rest_ = document_;
      }
      const size_t line = std::min(rest_.find('\n'), rest_.size());
      const size_t cut = line <= kMaxSentence ? line : cut_long(rest_.substr(0, line));
      sentence_ = rest_.substr(0, cut);
      rest_.remove_prefix(cut + (cut == line && cut < rest_.size() ? 1 : 0));
    } while (sentence_.empty());
  }

 private:
  static size_t cut_long(std::string_view line) {
    const size_t space = line.rfind(' ', kMaxSentence);
    return space != std::string_view::npos && space > 0 ? space : character_cut(line, kMaxSentence);
  }

  const std::function<bool(std::string&)>& next_document_;
  std::string document_, sentence_;
  std::string_view rest_;
  bool done_ = false;
};

std::unordered_map<std::string, std::string> trainer_flags(const TokenizerConfig& settings) {
  return {{"model_type", "bpe"},
          {"vocab_size", std::to_string(settings.vocab_size)},
          {"byte_fallback", "true"},
          {"split_digits", "true"},
          {"normalization_rule_name", "identity"},
          {"remove_extra_whitespaces", "false"},
          {"add_dummy_prefix", "true"},
          {"allow_whitespace_only_pieces", "true"},
          {"character_coverage", std::to_string(settings.character_coverage)},
          {"max_sentence_length", std::to_string(kMaxSentence)},
          {"unk_id", "0"},
          {"bos_id", "1"},
          {"eos_id", "2"},
          {"pad_id", "-1"},
          {"num_threads", std::to_string(available_cores())},
          {"minloglevel", "2"}};
}

// The number behind `mark` in a message of the trainer, empty if there is none.
std::string number_behind(const std::string& message, const std::string& mark) {
  const size_t at = message.find(mark);
  if (at == std::string::npos) return "";
  const size_t first = at + mark.size();
  return message.substr(first, message.find_first_not_of("0123456789", first) - first);
}

// The trainer speaks of its own flags and source lines; say the same in ours.
[[noreturn]] void refuse_vocabulary(const std::string& wanted, const std::string& message) {
  const std::string most = number_behind(message, "set it to a value <= ");
  if (!most.empty())
    throw Error(Exit::usage, wanted + " is more than this text has pieces for",
                "set it to at most " + most + ", or give more text");
  const std::string least = number_behind(message, " vs ");
  if (!least.empty())
    throw Error(Exit::usage, wanted + " is too small for the characters of this text",
                "set it to at least " + least + ", or lower tokenizer.character_coverage");
  throw Error(Exit::data, wanted + ": the tokenizer cannot be trained: " + message);
}

}  // namespace

std::string train_tokenizer(const TokenizerConfig& settings,
                            const std::function<bool(std::string&)>& next_document) {
  const std::string wanted = "tokenizer.vocab_size = " + std::to_string(settings.vocab_size);
  if (settings.vocab_size <= kControlAndBytes)
    throw Error(Exit::usage, wanted + " leaves no room beside 3 control and 256 byte pieces",
                "set it to at least 300");
  Sentences sentences(next_document);
  if (sentences.done())
    throw Error(Exit::data, "there is no text to train a tokenizer on", "check the inputs");
  std::string model;
  const auto status =
      sentencepiece::SentencePieceTrainer::Train(trainer_flags(settings), &sentences, &model);
  if (!status.ok()) refuse_vocabulary(wanted, status.ToString());
  return model;
}

}  // namespace kla
