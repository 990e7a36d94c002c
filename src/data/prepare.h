// `kla data prepare`: text to tokenizer to token shards. A pipeline of one reader, several
// tokenizing workers and one writer that keeps the order, so the result does not depend on the
// number of threads. The output appears under its name only when it is complete.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "data/corpus.h"
#include "data/manifest.h"
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
  const std::atomic<bool>* stop = nullptr;  // becomes true on Ctrl-C
  int threads = 0;                          // 0: one a core; the result does not depend on it
};

struct PrepareSummary {
  bool already_done = false;  // the same settings and inputs had been prepared before
  PreparedCounts counts;
  CorpusCounts corpus;
  int64_t vocab_size = 0;
  double training_seconds = 0;    // of the tokenizer; 0 if one was given
  double tokenizing_seconds = 0;  // reading, tokenizing and writing together
};

// Error{usage} bad options or an output that holds something else, Error{data} bad text,
// Error{io} missing files or a full disk, Error{stopped} after Ctrl-C.
PrepareSummary prepare_dataset(const PrepareOptions& options);

}  // namespace kla
