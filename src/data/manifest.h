// dataset.json: what a split consists of. It binds its shards together, so that a shard exchanged
// for another one, or left out, is noticed.
#pragma once

#include <cstdint>
#include <string>
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

inline constexpr const char* kManifestName = "dataset.json";

std::string manifest_to_json(const Manifest& manifest);
Manifest read_manifest(const std::string& directory);  // Error{data}, Error{io}

}  // namespace kla
