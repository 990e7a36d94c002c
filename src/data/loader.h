// Loader: which tokens are training sample number i. A pure function of (seed, epoch, index): the
// order does not depend on ranks, micro-batches or history, and the position of a run is one
// number.
#pragma once

#include <cstdint>

#include "data/dataset.h"

namespace kla {

class Loader {
 public:
  // seq_len: T. The dataset must outlive the loader. Error{data} if it has fewer than two tokens.
  Loader(const TokenDataset& dataset, int64_t seq_len, uint64_t shuffle_seed,
         bool reset_at_documents);

  // Window w holds tokens [wT, wT+T]: neighbours share one token, so every token but the first is
  // the target of exactly one window. ceil((tokens - 1) / T) of them make an epoch; the last may be
  // short.
  int64_t samples_per_epoch() const { return samples_; }
  int64_t targets_per_epoch() const { return tokens_ - 1; }
  int64_t seq_len() const { return seq_len_; }

  // tokens[T], targets[T] of sample `index` (counted over all epochs; each epoch has an order of
  // its own). Where a short window ends, tokens are 0 and targets -1: never trained on, never
  // counted. reset[T], or null: 1 where a document starts inside the window if reset_at_documents,
  // else 0; position 0 is always 0, a window starts from the zero state anyway. The target across a
  // document boundary (end of text -> first token of the next) counts in either case.
  // Safe to call from several threads.
  void sample(uint64_t index, int32_t* tokens, int32_t* targets, uint8_t* reset) const;
  int64_t targets_in(uint64_t index) const;  // T, or less for the short window

  int64_t window_of(uint64_t index) const;  // the w above

 private:
  const TokenDataset* dataset_;
  int64_t seq_len_, tokens_, samples_;
  uint64_t seed_;
  bool reset_at_documents_;
};

}  // namespace kla
