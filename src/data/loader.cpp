#include "data/loader.h"

#include <algorithm>
#include <string>

#include "core/error.h"
#include "core/philox.h"

namespace kla {

Loader::Loader(const TokenDataset& dataset, int64_t seq_len, uint64_t shuffle_seed,
               bool reset_at_documents)
    : dataset_(&dataset),
      seq_len_(seq_len),
      tokens_(dataset.tokens()),
      seed_(shuffle_seed),
      reset_at_documents_(reset_at_documents) {
  KLA_CHECK(seq_len >= 1, "seq_len");
  if (tokens_ < 2)
    throw Error(Exit::data, "data in '" + dataset.directory() + "' has fewer than two tokens",
                "prepare more text");
  samples_ = (tokens_ - 1 + seq_len - 1) / seq_len;
}

int64_t Loader::window_of(uint64_t index) const {
  const auto samples = static_cast<uint64_t>(samples_);
  const RandomPermutation order(samples, seed_, "epoch " + std::to_string(index / samples));
  return static_cast<int64_t>(order(index % samples));
}

int64_t Loader::targets_in(uint64_t index) const {
  return std::min(seq_len_, tokens_ - 1 - window_of(index) * seq_len_);
}

void Loader::sample(uint64_t index, int32_t* tokens, int32_t* targets, uint8_t* reset) const {
  const int64_t first = window_of(index) * seq_len_;
  const int64_t count = std::min(seq_len_, tokens_ - 1 - first);
  dataset_->read(first, count, tokens);
  std::copy_n(tokens + 1, count - 1, targets);
  dataset_->read(first + count, 1, targets + count - 1);
  std::fill(tokens + count, tokens + seq_len_, 0);
  std::fill(targets + count, targets + seq_len_, -1);
  if (!reset) return;
  std::fill(reset, reset + seq_len_, uint8_t{0});
  if (!reset_at_documents_) return;
  dataset_->document_starts(first, count, reset);
  reset[0] = 0;
}

}  // namespace kla
