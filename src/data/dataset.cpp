#include "data/dataset.h"

#include <algorithm>
#include <vector>

#include "core/error.h"
#include "core/hash.h"
#include "data/manifest.h"
#include "data/shard.h"

namespace kla {

struct TokenDataset::State {
  std::string directory, identity;
  Manifest manifest;
  std::vector<ShardReader> shards;
  std::vector<int64_t> shard_starts;     // [shards + 1] first token of each shard, then the total
  std::vector<int64_t> document_starts;  // [documents + 1], over all shards, then the total
};

namespace {

[[noreturn]] void inconsistent(const std::string& path, const std::string& what) {
  throw Error(Exit::data, "'" + path + "' " + what,
              "files of different preparations are mixed: run `kla data prepare` again");
}

ShardReader open_shard(const std::string& directory, const ShardEntry& entry,
                       const Manifest& manifest) {
  ShardReader shard(directory + "/" + entry.file);
  const ShardHeader& header = shard.header();
  if (header.tokens != entry.tokens || header.documents != entry.documents ||
      header.payload_xxh3 != entry.payload_xxh3)
    inconsistent(shard.path(), "is not the shard that " + std::string(kManifestName) + " names");
  if (header.tokenizer_sha256 != manifest.tokenizer_sha256 ||
      header.vocab_size != manifest.vocab_size)
    inconsistent(shard.path(), "was made with another tokenizer than its " +
                                   std::string(kManifestName) + " says");
  return shard;
}

}  // namespace

TokenDataset TokenDataset::open(const std::string& directory, int64_t vocab_limit, Verify verify) {
  auto state = std::make_unique<State>();
  state->directory = directory;
  state->manifest = read_manifest(directory);
  const Manifest& manifest = state->manifest;
  if (vocab_limit > 0 && manifest.vocab_size > vocab_limit)
    throw Error(Exit::data,
                "data in '" + directory + "' has a vocabulary of " +
                    std::to_string(manifest.vocab_size) + " ids, the model's vocab_size is " +
                    std::to_string(vocab_limit),
                "set model.vocab_size to at least " + std::to_string(manifest.vocab_size));
  std::string content = manifest.tokenizer_sha256;
  state->shard_starts = {0};
  for (const ShardEntry& entry : manifest.shards) {
    state->shards.push_back(open_shard(directory, entry, manifest));
    const ShardReader& shard = state->shards.back();
    if (verify == Verify::payload) shard.verify_payload();
    const int64_t first = state->shard_starts.back();
    for (const uint64_t start : shard.document_starts())
      state->document_starts.push_back(first + static_cast<int64_t>(start));
    state->shard_starts.push_back(first + shard.header().tokens);
    content += shard.header().payload_xxh3;
  }
  const int64_t tokens = state->shard_starts.back();
  const auto documents = static_cast<int64_t>(state->document_starts.size());
  if (tokens != manifest.tokens || documents != manifest.documents || documents == 0)
    inconsistent(directory + "/" + kManifestName,
                 "counts other tokens or documents than its shards hold");
  state->document_starts.push_back(tokens);
  state->identity = xxh3_128_hex(content.data(), content.size());
  return TokenDataset(std::move(state));
}

TokenDataset::TokenDataset(std::unique_ptr<State> state) : state_(std::move(state)) {}
TokenDataset::TokenDataset(TokenDataset&&) noexcept = default;
TokenDataset& TokenDataset::operator=(TokenDataset&&) noexcept = default;
TokenDataset::~TokenDataset() = default;

int64_t TokenDataset::tokens() const {
  return state_->manifest.tokens;
}
int64_t TokenDataset::documents() const {
  return state_->manifest.documents;
}
int64_t TokenDataset::text_bytes() const {
  return state_->manifest.text_bytes;
}
int64_t TokenDataset::vocab_size() const {
  return state_->manifest.vocab_size;
}
const std::string& TokenDataset::tokenizer_sha256() const {
  return state_->manifest.tokenizer_sha256;
}
const std::string& TokenDataset::identity() const {
  return state_->identity;
}
const std::string& TokenDataset::directory() const {
  return state_->directory;
}

void TokenDataset::require_tokenizer(const std::string& sha256, const std::string& owner) const {
  if (sha256 == tokenizer_sha256()) return;
  throw Error(Exit::data,
              "data in '" + directory() + "' was made with another tokenizer (SHA-256 " +
                  tokenizer_sha256().substr(0, 12) + "...) than " + owner + " (" +
                  sha256.substr(0, 12) + "...)",
              "use data prepared with the same tokenizer.model");
}

void TokenDataset::read(int64_t first, int64_t count, int32_t* out) const {
  KLA_CHECK(first >= 0 && count >= 0 && first + count <= tokens(), "token range");
  const std::vector<int64_t>& starts = state_->shard_starts;
  auto shard = static_cast<size_t>(std::upper_bound(starts.begin(), starts.end(), first) -
                                   starts.begin() - 1);
  while (count > 0) {
    const int64_t n = std::min(count, starts[shard + 1] - first);
    state_->shards[shard].read(first - starts[shard], n, out);
    first += n;
    out += n;
    count -= n;
    ++shard;
  }
}

void TokenDataset::document_starts(int64_t first, int64_t count, uint8_t* flags) const {
  KLA_CHECK(first >= 0 && count >= 0 && first + count <= tokens(), "token range");
  std::fill(flags, flags + count, uint8_t{0});
  const std::vector<int64_t>& starts = state_->document_starts;
  auto start = std::lower_bound(starts.begin(), starts.end() - 1, first);
  for (; start != starts.end() - 1 && *start < first + count; ++start) flags[*start - first] = 1;
}

int64_t TokenDataset::document_of(int64_t token) const {
  KLA_CHECK(token >= 0 && token < tokens(), "token index");
  const std::vector<int64_t>& starts = state_->document_starts;
  return std::upper_bound(starts.begin(), starts.end(), token) - starts.begin() - 1;
}

int64_t TokenDataset::document_start(int64_t document) const {
  KLA_CHECK(document >= 0 && document <= documents(), "document index");
  return state_->document_starts[static_cast<size_t>(document)];
}

}  // namespace kla
