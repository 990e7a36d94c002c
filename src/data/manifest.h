// The JSON files of a prepared corpus. dataset.json says what a split consists of and binds its
// shards together, so that a shard exchanged for another one, or left out, is noticed.
// prepare.json, above the splits, says what was asked for, so that the same request is not carried
// out twice.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace kla {

struct SourceFile {
  std::string path;  // as given in the config
  int64_t bytes = 0;
  std::string xxh3;  // XXH3-128 of the file, hex
};

struct ShardEntry {
  std::string file;  // name inside the folder
  int64_t tokens = 0;
  int64_t documents = 0;
  std::string payload_xxh3;
};

struct Manifest {
  int64_t tokens = 0, documents = 0;
  int64_t text_bytes = 0;
  int64_t vocab_size = 0;
  std::string tokenizer_sha256;
  std::vector<ShardEntry> shards;
  std::vector<SourceFile> sources;
};

struct PreparedCounts {
  int64_t train_documents = 0, val_documents = 0;
  int64_t train_tokens = 0, val_tokens = 0;
  int64_t text_bytes = 0;       // of both splits
  int64_t fallback_tokens = 0;  // bytes and unknowns: text for which no piece fitted
};

struct PrepareRecord {
  std::vector<std::pair<std::string, std::string>> settings;  // key, value
  std::vector<SourceFile> sources, val_sources;               // every file that was read
  std::string tokenizer_sha256;
  PreparedCounts counts;
};

inline constexpr const char* kManifestName = "dataset.json";

std::string manifest_to_json(const Manifest& manifest);
Manifest read_manifest(const std::string& directory);  // Error{data}, Error{io}

inline constexpr const char* kRecordName = "prepare.json";

std::string record_to_json(const PrepareRecord& record);
PrepareRecord read_record(const std::string& directory);  // Error{data}, Error{io}

}  // namespace kla
