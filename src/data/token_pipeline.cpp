#include "data/token_pipeline.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace kla {
namespace {

// Documents wait in chunks; a chunk is one task of the pool, a batch of chunks one round.
constexpr size_t kChunkBytes = 128 << 10;
constexpr size_t kBatchChunks = 64;

struct Chunk {
  std::vector<std::string> texts;
  std::vector<Split> splits;
  std::vector<int32_t> ids;     // of all documents, one after the other
  std::vector<int64_t> counts;  // ids of each
  int64_t text_bytes = 0, fallback_tokens = 0;
};
using Batch = std::vector<Chunk>;

Batch read_batch(const PipelineIo& io) {
  Batch batch;
  std::string text;
  Split split = Split::train;
  while (batch.size() < kBatchChunks) {
    Chunk chunk;
    while (static_cast<size_t>(chunk.text_bytes) < kChunkBytes && io.next(text, split)) {
      chunk.text_bytes += static_cast<int64_t>(text.size());
      chunk.texts.push_back(std::move(text));
      chunk.splits.push_back(split);
    }
    if (chunk.texts.empty()) break;
    batch.push_back(std::move(chunk));
  }
  return batch;
}

void encode_chunk(Chunk& chunk, Encoder& encoder, const Tokenizer& tokenizer, bool add_bos) {
  for (const std::string& text : chunk.texts) {
    const size_t first = chunk.ids.size();
    if (add_bos) chunk.ids.push_back(tokenizer.bos_id());
    encoder.encode(text, chunk.ids);
    chunk.ids.push_back(tokenizer.eos_id());
    chunk.counts.push_back(static_cast<int64_t>(chunk.ids.size() - first));
  }
  chunk.fallback_tokens = std::count_if(chunk.ids.begin(), chunk.ids.end(),
                                        [&](int32_t id) { return tokenizer.is_fallback(id); });
}

void write_batch(const Batch& batch, const PipelineIo& io, PipelineCounts& total) {
  for (const Chunk& chunk : batch) {
    const int32_t* ids = chunk.ids.data();
    for (size_t i = 0; i < chunk.texts.size(); ++i) {
      DatasetWriter* writer = chunk.splits[i] == Split::val ? io.val : io.train;
      writer->add_document(ids, chunk.counts[i], static_cast<int64_t>(chunk.texts[i].size()));
      ids += chunk.counts[i];
    }
    total.text_bytes += chunk.text_bytes;
    total.fallback_tokens += chunk.fallback_tokens;
  }
}

}  // namespace

PipelineCounts& PipelineCounts::operator+=(const PipelineCounts& other) {
  text_bytes += other.text_bytes;
  fallback_tokens += other.fallback_tokens;
  return *this;
}

PipelineCounts tokenize_documents(const PipelineIo& io, const Tokenizer& tokenizer, bool add_bos,
                                  ThreadPool& pool) {
  std::vector<Encoder> encoders;
  for (int i = 0; i < pool.threads(); ++i) encoders.emplace_back(tokenizer);
  PipelineCounts total;
  Batch reading = read_batch(io), encoding, writing;
  while (!reading.empty() || !encoding.empty()) {
    writing = std::move(encoding);
    encoding = std::move(reading);
    reading.clear();
    // One round: the next batch is read and the last one written beside the encoding of this one.
    const auto tasks = static_cast<int64_t>(encoding.size()) + 2;
    pool.run(tasks, [&](int64_t task, int worker) {
      if (task == 0) {
        if (!encoding.empty()) reading = read_batch(io);
      } else if (task == 1) {
        write_batch(writing, io, total);
      } else {
        encode_chunk(encoding[static_cast<size_t>(task - 2)], encoders[static_cast<size_t>(worker)],
                     tokenizer, add_bos);
      }
    });
    io.progress(total.text_bytes);
  }
  return total;
}

}  // namespace kla
