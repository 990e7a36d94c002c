// The middle of `kla data prepare`: documents in, tokenized documents out, in the same order.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "core/thread_pool.h"
#include "data/dataset_writer.h"
#include "data/tokenizer.h"

namespace kla {

enum class Split : uint8_t { train, val };

struct PipelineIo {
  std::function<bool(std::string& text, Split& split)> next;  // false: no more documents
  DatasetWriter* train = nullptr;
  DatasetWriter* val = nullptr;
  std::function<void(int64_t text_bytes)> progress;  // so far; may throw to stop
};

struct PipelineCounts {
  int64_t text_bytes = 0, fallback_tokens = 0;
  PipelineCounts& operator+=(const PipelineCounts& other);
};

// Each document becomes [bos] pieces eos. The result does not depend on the number of threads.
PipelineCounts tokenize_documents(const PipelineIo& io, const Tokenizer& tokenizer, bool add_bos,
                                  ThreadPool& pool);

}  // namespace kla
