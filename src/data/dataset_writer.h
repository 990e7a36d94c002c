// DatasetWriter: documents of token ids in, the folder of shards that TokenDataset opens out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "data/manifest.h"
#include "data/shard.h"

namespace kla {

class DatasetWriter {
 public:
  // `directory` is created with the first document. A shard ends with the document that brings it
  // to `shard_tokens` tokens.
  DatasetWriter(std::string directory, int64_t vocab_size, std::string tokenizer_sha256,
                int64_t shard_tokens);

  // ids[count]: one document with its bos and eos; text_bytes: its length as UTF-8.
  void add_document(const int32_t* ids, int64_t count, int64_t text_bytes);
  int64_t tokens() const { return manifest_.tokens; }
  int64_t documents() const { return manifest_.documents; }

  // Completes the last shard and writes the manifest; at least one document is needed.
  void finish(std::vector<SourceFile> sources);

 private:
  void finish_shard();

  std::string directory_;
  int64_t shard_tokens_;
  Manifest manifest_;
  std::optional<ShardWriter> shard_;
};

}  // namespace kla
