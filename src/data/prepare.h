// `kla data prepare`: text to tokenizer to token shards. A pipeline of one reader, several
// tokenizing workers and one writer that keeps the order, so the result does not depend on the
// number of threads. The output appears under its name only when it is complete.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/corpus.h"
#include "data/tokenizer.h"

namespace kla {

struct PrepareOptions {
  std::vector<std::string> inputs;      // files and folders of text
  std::vector<std::string> val_inputs;  // empty: validation documents are taken from `inputs`
  std::string output;                   // train/ val/ tokenizer.model are written below it
  double val_fraction = 0.01;           // of the documents of `inputs`, chosen by their hash
  int64_t max_val_documents = 0;        // the first so many of val_inputs; 0: all
  std::string tokenizer_path;           // a model to use; empty: train one on the corpus
  TokenizerTraining tokenizer;
  bool add_bos = true;                 // a document is [bos] pieces eos, or pieces eos
  int64_t shard_tokens = 100'000'000;  // a shard ends with the document that reaches this
  CorpusPolicy corpus;
  int threads = 0;  // 0: one a core; the result does not depend on it
};

struct PrepareSummary {
  bool already_done = false;  // the same settings and inputs were prepared before
  int64_t train_documents = 0, val_documents = 0;
  int64_t train_tokens = 0, val_tokens = 0;
  int64_t text_bytes = 0;
  int64_t unknown_tokens = 0;  // pieces that lost their text (models without byte fallback)
  CorpusCounts corpus;
  double tokenize_seconds = 0;
};

// Error{usage} bad options or an output that holds something else, Error{data} bad text,
// Error{io} missing files or a full disk, Error{stopped} after Ctrl-C.
PrepareSummary prepare_dataset(const PrepareOptions& options);

}  // namespace kla
