// Honest perplexity: the whole validation set in windows of a given context length, every token but
// the first a target exactly once, padding never scored, with a bootstrap interval over documents.
// And the protocol of the study (PAPER_SPEC 4.6), under its own name, so that its numbers can be
// read side by side.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/dataset.h"
#include "eval/scorer.h"

namespace kla {

// One entry for every document of the dataset; of documents that were not scored both are 0.
struct DocumentLosses {
  std::vector<double> loss;    // nats, summed over its targets
  std::vector<int64_t> count;  // targets
};

struct Perplexity {
  int64_t length = 0;  // context length, tokens
  double loss = 0;     // nats a target, mean
  double low = 0,
         high = 0;     // 95 % bootstrap interval of the loss; NaN with fewer than two documents
  int64_t tokens = 0;  // targets scored
  int64_t bytes = 0;   // of text these targets stand for
  int64_t documents = 0;
  double seconds = 0;
  DocumentLosses by_document;

  double ppl() const;            // exp(loss)
  double bits_per_byte() const;  // loss * tokens / (bytes * ln 2)
};

// "length 512 | loss 4.1234 [4.0511, 4.2003] | ppl 61.77 | 1.934 bits/byte | 61.2k targets | 3.2 s"
std::string describe(const Perplexity&);

// One of several processes that score together: of `size` batches of windows in a row, this one
// does number `rank`, and `gather` returns the losses of all of them in that order, each filled up
// to `most` numbers. Every process gets the same result, the one that a single process gets.
struct EvaluationShare {
  int rank = 0, size = 1;
  std::function<std::vector<float>(std::vector<float> mine, int64_t most)> gather;
};

struct PerplexityOptions {
  int64_t length = 512;             // T: window i is tokens [iT, iT+T], from the empty state
  int64_t max_tokens = 0;           // stop after about this many targets; 0: the whole set
  bool reset_at_documents = false;  // as the model was trained
  EvaluationShare share = {};
};

// `token_bytes`: bytes of text of each id (Tokenizer::token_bytes). `progress` is called with
// targets done and targets in all. The scorer must have been made for options.length.
Perplexity evaluate_perplexity(Scorer& scorer, const TokenDataset& data,
                               const std::vector<int32_t>& token_bytes,
                               const PerplexityOptions& options,
                               const std::function<void(int64_t, int64_t)>& progress = {});

// Mean and 95 % percentile interval of sum(losses)/sum(counts) over documents drawn with
// replacement.
struct Interval {
  double low, high;
};
Interval bootstrap_interval(const std::vector<double>& loss_sums,
                            const std::vector<int64_t>& counts, int resamples = 1000,
                            uint64_t seed = 1);

// Loss of b minus loss of a, nats a target, of two models on the same targets, and its 95 %
// interval over documents: a document is drawn for both at once, so what makes it hard for both
// cancels. It says how exactly these two models were measured, not how other seeds would have done.
// Error{data} if the targets are not the same.
struct PairedLoss {
  double difference = 0, low = 0, high = 0;  // NaN limits with fewer than two documents
  int64_t documents = 0, targets = 0;
};
PairedLoss compare_losses(const DocumentLosses& a, const DocumentLosses& b);

// The study's "val_ppl@1x" (prefix 2048) and "@2x" (prefix 4096): the token stream is cut into
// files of 1,048,576 tokens, the last one filled up with end-of-text; each of 4 readers takes one
// file (going round if there are fewer) and scores a prefix of its first 30 blocks of 16,385
// tokens.
struct ReleaseProtocol {
  int64_t file_tokens = 1048576, block_tokens = 16385, blocks = 30, readers = 4;
};
struct ReleaseResult {
  int64_t prefix = 0;
  double loss_padded = 0;  // the study's number: the fill counts
  double loss_text = 0;    // real targets only
  double loss_fill = 0;    // fill targets only; NaN if there are none
  double fill_share = 0;   // p in ln ppl = (1 - p) loss_text + p loss_fill
  int64_t targets = 0;
};
std::vector<ReleaseResult> evaluate_release_protocol(Scorer& scorer, const TokenDataset& data,
                                                     int32_t end_of_text,
                                                     const std::vector<int64_t>& prefixes,
                                                     const ReleaseProtocol& protocol = {});

}  // namespace kla
