#include "data/manifest.h"

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/file.h"

namespace kla {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kDatasetFormat = "kla-dataset";
constexpr const char* kRecordFormat = "kla-prepare";
constexpr int kManifestVersion = 1;
constexpr int64_t kMaxBytes = 64 << 20;
constexpr const char* kRemedy = "delete the prepared folder and run `kla data prepare` again";

// A name that stays inside its folder.
bool plain_name(const std::string& name) {
  return !name.empty() && name[0] != '.' && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

std::string dump(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

// Parses the file and hands it to `take`; whatever is wrong becomes an Error naming the file.
template <class Take>
void read_json(const std::string& path, const char* format, Take&& take) {
  try {
    const Json json = Json::parse(read_file(path, kMaxBytes));
    if (json.at("format") != format || json.at("version") != kManifestVersion)
      throw Error(Exit::data, "'" + path + "' is of another format or version", kRemedy);
    take(json);
  } catch (const Json::exception& e) {
    throw Error(Exit::data, "'" + path + "' is damaged: " + e.what(), kRemedy);
  }
}

Json sources_to_json(const std::vector<SourceFile>& sources) {
  Json list = Json::array();
  for (const SourceFile& source : sources)
    list.push_back({{"path", source.path}, {"bytes", source.bytes}, {"xxh3_128", source.xxh3}});
  return list;
}

std::vector<SourceFile> sources_from_json(const Json& list) {
  std::vector<SourceFile> sources;
  for (const Json& source : list)
    sources.push_back({source.at("path"), source.at("bytes"), source.at("xxh3_128")});
  return sources;
}

}  // namespace

std::string manifest_to_json(const Manifest& manifest) {
  Json shards = Json::array();
  for (const ShardEntry& shard : manifest.shards)
    shards.push_back({{"file", shard.file},
                      {"tokens", shard.tokens},
                      {"documents", shard.documents},
                      {"payload_xxh3_128", shard.payload_xxh3}});
  return dump({{"format", kDatasetFormat},
               {"version", kManifestVersion},
               {"tokens", manifest.tokens},
               {"documents", manifest.documents},
               {"text_bytes", manifest.text_bytes},
               {"vocab_size", manifest.vocab_size},
               {"tokenizer_sha256", manifest.tokenizer_sha256},
               {"shards", shards},
               {"sources", sources_to_json(manifest.sources)}});
}

Manifest read_manifest(const std::string& directory) {
  const std::string path = directory + "/" + kManifestName;
  if (!file_exists(path))
    throw Error(Exit::io, "no prepared data in '" + directory + "' (no " + kManifestName + ")",
                "run `kla data prepare` first; train/ and val/ are folders below its output");
  Manifest manifest;
  read_json(path, kDatasetFormat, [&](const Json& json) {
    json.at("tokens").get_to(manifest.tokens);
    json.at("documents").get_to(manifest.documents);
    json.at("text_bytes").get_to(manifest.text_bytes);
    json.at("vocab_size").get_to(manifest.vocab_size);
    json.at("tokenizer_sha256").get_to(manifest.tokenizer_sha256);
    for (const Json& shard : json.at("shards"))
      manifest.shards.push_back({shard.at("file"), shard.at("tokens"), shard.at("documents"),
                                 shard.at("payload_xxh3_128")});
    manifest.sources = sources_from_json(json.at("sources"));
  });
  for (const ShardEntry& shard : manifest.shards)
    if (!plain_name(shard.file))
      throw Error(Exit::data, "'" + path + "' names a shard outside its folder", kRemedy);
  return manifest;
}

std::string record_to_json(const PrepareRecord& record) {
  Json settings = Json::object();
  for (const auto& [key, value] : record.settings) settings[key] = value;
  const PreparedCounts& counts = record.counts;
  return dump({{"format", kRecordFormat},
               {"version", kManifestVersion},
               {"settings", settings},
               {"tokenizer_sha256", record.tokenizer_sha256},
               {"train_documents", counts.train_documents},
               {"val_documents", counts.val_documents},
               {"train_tokens", counts.train_tokens},
               {"val_tokens", counts.val_tokens},
               {"text_bytes", counts.text_bytes},
               {"fallback_tokens", counts.fallback_tokens},
               {"sources", sources_to_json(record.sources)},
               {"val_sources", sources_to_json(record.val_sources)}});
}

PrepareRecord read_record(const std::string& directory) {
  PrepareRecord record;
  read_json(directory + "/" + kRecordName, kRecordFormat, [&](const Json& json) {
    for (const auto& [key, value] : json.at("settings").items())
      record.settings.emplace_back(key, value);
    json.at("tokenizer_sha256").get_to(record.tokenizer_sha256);
    json.at("train_documents").get_to(record.counts.train_documents);
    json.at("val_documents").get_to(record.counts.val_documents);
    json.at("train_tokens").get_to(record.counts.train_tokens);
    json.at("val_tokens").get_to(record.counts.val_tokens);
    json.at("text_bytes").get_to(record.counts.text_bytes);
    json.at("fallback_tokens").get_to(record.counts.fallback_tokens);
    record.sources = sources_from_json(json.at("sources"));
    record.val_sources = sources_from_json(json.at("val_sources"));
  });
  return record;
}

}  // namespace kla
