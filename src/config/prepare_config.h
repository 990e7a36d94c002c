// Settings of `kla data prepare`: which text, which tokenizer, how it is split. Read like the
// training config (load.h); schema.cpp lists the same fields. See configs/data/.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace kla {

struct TokenizerConfig {
  std::string path;                     // SentencePiece model to use; empty: train one
  int64_t vocab_size = 32000;           // N of the model to train
  double character_coverage = 0.99995;  // share of characters with a piece; the rest become bytes
  int64_t sample_bytes = 32 << 20;      // text the training sees
  uint64_t seed = 1;
};

struct PrepareConfig {
  std::vector<std::string> inputs;  // files and folders of .txt and .jsonl, plain, .gz or .zst
  std::string output;               // train/, val/ and tokenizer.model are written below it
  TokenizerConfig tokenizer;
  double val_fraction = 0.01;           // of the documents of `inputs`, chosen by their hash
  std::vector<std::string> val_inputs;  // used whole as validation, instead of val_fraction
  int64_t max_val_documents = 0;        // the first so many of val_inputs; 0: all
  bool add_bos = true;                  // a document is [bos] pieces eos, or pieces eos
  int64_t shard_tokens = 100'000'000;   // a shard ends with the document that reaches this
  std::string text_field = "text";      // of .jsonl objects
  std::string bad_documents = "skip";   // skip and count | stop
  int64_t threads = 0;                  // 0: one a core; the result does not depend on it
};

}  // namespace kla
