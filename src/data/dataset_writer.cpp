#include "data/dataset_writer.h"

#include <cstdio>

#include "core/error.h"
#include "core/file.h"

namespace kla {
namespace {

std::string shard_name(size_t index) {
  char name[32];
  std::snprintf(name, sizeof(name), "shard-%05zu.kla", index);
  return name;
}

}  // namespace

DatasetWriter::DatasetWriter(std::string directory, int64_t vocab_size,
                             std::string tokenizer_sha256, int64_t shard_tokens)
    : directory_(std::move(directory)), shard_tokens_(shard_tokens) {
  manifest_.vocab_size = vocab_size;
  manifest_.tokenizer_sha256 = std::move(tokenizer_sha256);
}

void DatasetWriter::add_document(const int32_t* ids, int64_t count, int64_t text_bytes) {
  if (!shard_) {
    make_directories(directory_);
    shard_.emplace(directory_ + "/" + shard_name(manifest_.shards.size()), manifest_.vocab_size,
                   manifest_.tokenizer_sha256);
  }
  shard_->add_document(ids, count, text_bytes);
  manifest_.tokens += count;
  manifest_.documents += 1;
  manifest_.text_bytes += text_bytes;
  if (shard_->tokens() >= shard_tokens_) finish_shard();
}

void DatasetWriter::finish_shard() {
  const ShardHeader header = shard_->finish();
  manifest_.shards.push_back(
      {shard_name(manifest_.shards.size()), header.tokens, header.documents, header.payload_xxh3});
  shard_.reset();
}

void DatasetWriter::finish(std::vector<SourceFile> sources) {
  if (shard_) finish_shard();
  KLA_CHECK(!manifest_.shards.empty(), "a dataset has at least one document");
  manifest_.sources = std::move(sources);
  write_file_atomic(directory_ + "/" + kManifestName, manifest_to_json(manifest_));
}

}  // namespace kla
