// `kla data prepare`: text to tokenizer to token shards. A pipeline of one reader, several
// tokenizing workers and one writer that keeps the order, so the result does not depend on the
// number of threads. The output appears under its name only when it is complete.
#pragma once

#include <atomic>
#include <cstdint>

#include "config/prepare_config.h"
#include "data/corpus.h"
#include "data/manifest.h"

namespace kla {

struct PrepareSummary {
  bool already_done = false;  // the same settings and inputs had been prepared before
  PreparedCounts counts;
  CorpusCounts corpus;
  double training_seconds = 0;    // of the tokenizer; 0 if one was given
  double tokenizing_seconds = 0;  // reading, tokenizing and writing together
};

// `stop` (or null) becomes true on Ctrl-C. Error{usage} for an output that holds something else or
// a vocabulary that does not fit, Error{data} bad text, Error{io} missing files or a full disk,
// Error{stopped}.
PrepareSummary prepare_dataset(const PrepareConfig& config,
                               const std::atomic<bool>* stop = nullptr);

}  // namespace kla
