#include "data/manifest.h"

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/file.h"

namespace kla {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "kla-dataset";
constexpr int kVersion = 1;
constexpr int64_t kMaxBytes = 64 << 20;

// A name that stays inside its folder.
bool plain_name(const std::string& name) {
  return !name.empty() && name[0] != '.' && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

Manifest from_json(const Json& json) {
  Manifest manifest;
  json.at("tokens").get_to(manifest.tokens);
  json.at("documents").get_to(manifest.documents);
  json.at("text_bytes").get_to(manifest.text_bytes);
  json.at("vocab_size").get_to(manifest.vocab_size);
  json.at("tokenizer_sha256").get_to(manifest.tokenizer_sha256);
  for (const Json& shard : json.at("shards"))
    manifest.shards.push_back({shard.at("file"), shard.at("tokens"), shard.at("documents"),
                               shard.at("payload_xxh3_128")});
  for (const Json& source : json.at("sources"))
    manifest.sources.push_back({source.at("path"), source.at("bytes"), source.at("xxh3_128")});
  return manifest;
}

}  // namespace

std::string manifest_to_json(const Manifest& manifest) {
  Json shards = Json::array(), sources = Json::array();
  for (const ShardEntry& shard : manifest.shards)
    shards.push_back({{"file", shard.file},
                      {"tokens", shard.tokens},
                      {"documents", shard.documents},
                      {"payload_xxh3_128", shard.payload_xxh3}});
  for (const SourceFile& source : manifest.sources)
    sources.push_back({{"path", source.path}, {"bytes", source.bytes}, {"xxh3_128", source.xxh3}});
  const Json json = {{"format", kFormat},
                     {"version", kVersion},
                     {"tokens", manifest.tokens},
                     {"documents", manifest.documents},
                     {"text_bytes", manifest.text_bytes},
                     {"vocab_size", manifest.vocab_size},
                     {"tokenizer_sha256", manifest.tokenizer_sha256},
                     {"shards", shards},
                     {"sources", sources}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

Manifest read_manifest(const std::string& directory) {
  const std::string path = directory + "/" + kManifestName;
  if (!file_exists(path))
    throw Error(
        Exit::io, "no prepared data in '" + directory + "' (no " + kManifestName + ")",
        "run `kla data prepare` first, and give the train/ or val/ folder below its output");
  try {
    const Json json = Json::parse(read_file(path, kMaxBytes));
    if (json.at("format") != kFormat || json.at("version") != kVersion)
      throw Error(Exit::data, "'" + path + "' is of another format or version",
                  "prepare the data again with `kla data prepare`");
    Manifest manifest = from_json(json);
    for (const ShardEntry& shard : manifest.shards)
      if (!plain_name(shard.file))
        throw Error(Exit::data, "'" + path + "' names a shard outside its folder");
    return manifest;
  } catch (const Json::exception& e) {
    throw Error(Exit::data, "'" + path + "' is damaged: " + e.what(),
                "prepare the data again with `kla data prepare`");
  }
}

}  // namespace kla
