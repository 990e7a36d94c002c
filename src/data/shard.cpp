#include "data/shard.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "core/error.h"

namespace kla {
namespace {

static_assert(std::endian::native == std::endian::little, "shards are read as they lie on disk");

constexpr char kMagic[8] = {'K', 'L', 'A', 'T', 'O', 'K', 'S', '\0'};
constexpr uint32_t kShardVersion = 1;
constexpr size_t kHashOffset = kShardPage - 8;

using Page = std::array<char, kShardPage>;

struct PackedHeader {
  char magic[8];
  uint32_t version, bytes_per_token;
  uint64_t tokens, documents, vocab_size, text_bytes;
  char tokenizer_sha256[64], payload_xxh3[32];
};
static_assert(sizeof(PackedHeader) == 144);

[[noreturn]] void damaged(const std::string& path, const std::string& what) {
  throw Error(Exit::data, "shard '" + path + "': " + what,
              "delete the prepared folder and run `kla data prepare` again");
}

Page pack(const ShardHeader& header) {
  PackedHeader packed{};
  std::memcpy(packed.magic, kMagic, sizeof(kMagic));
  packed.version = kShardVersion;
  packed.bytes_per_token = static_cast<uint32_t>(header.bytes_per_token);
  packed.tokens = static_cast<uint64_t>(header.tokens);
  packed.documents = static_cast<uint64_t>(header.documents);
  packed.vocab_size = static_cast<uint64_t>(header.vocab_size);
  packed.text_bytes = static_cast<uint64_t>(header.text_bytes);
  header.tokenizer_sha256.copy(packed.tokenizer_sha256, sizeof(packed.tokenizer_sha256));
  header.payload_xxh3.copy(packed.payload_xxh3, sizeof(packed.payload_xxh3));
  Page page{};
  std::memcpy(page.data(), &packed, sizeof(packed));
  const uint64_t hash = xxh3_64(page.data(), kHashOffset);
  std::memcpy(page.data() + kHashOffset, &hash, sizeof(hash));
  return page;
}

ShardHeader unpack(const Page& page, const std::string& path) {
  PackedHeader packed;
  std::memcpy(&packed, page.data(), sizeof(packed));
  if (std::memcmp(packed.magic, kMagic, sizeof(kMagic)) != 0) damaged(path, "not a token shard");
  if (packed.version != kShardVersion)
    damaged(path, "format version " + std::to_string(packed.version) + ", this build reads " +
                      std::to_string(kShardVersion));
  uint64_t hash;
  std::memcpy(&hash, page.data() + kHashOffset, sizeof(hash));
  if (hash != xxh3_64(page.data(), kHashOffset)) damaged(path, "the header is damaged");
  constexpr uint64_t kLimit = uint64_t{1} << 48;  // keeps the sums below from overflowing
  if ((packed.bytes_per_token != 2 && packed.bytes_per_token != 4) || packed.tokens == 0 ||
      packed.tokens > kLimit || packed.documents == 0 || packed.documents > packed.tokens ||
      packed.vocab_size == 0 || packed.vocab_size > (uint64_t{1} << 31))
    damaged(path, "the header makes no sense");
  ShardHeader header;
  header.bytes_per_token = packed.bytes_per_token;
  header.tokens = static_cast<int64_t>(packed.tokens);
  header.documents = static_cast<int64_t>(packed.documents);
  header.vocab_size = static_cast<int64_t>(packed.vocab_size);
  header.text_bytes = static_cast<int64_t>(packed.text_bytes);
  header.tokenizer_sha256.assign(packed.tokenizer_sha256, sizeof(packed.tokenizer_sha256));
  header.payload_xxh3.assign(packed.payload_xxh3, sizeof(packed.payload_xxh3));
  return header;
}

}  // namespace

ShardWriter::ShardWriter(const std::string& path, int64_t vocab_size, std::string tokenizer_sha256)
    : file_(File::create_new(path)) {
  header_.bytes_per_token = vocab_size <= 65536 ? 2 : 4;
  header_.vocab_size = vocab_size;
  header_.tokenizer_sha256 = std::move(tokenizer_sha256);
  KLA_CHECK(header_.tokenizer_sha256.size() == 64, "a SHA-256 in hex");
  file_.write(Page{}.data(), kShardPage);  // the real one is written by finish()
}

void ShardWriter::put(const void* data, size_t bytes) {
  payload_.update(data, bytes);
  file_.write(data, bytes);
}

void ShardWriter::add_document(const int32_t* ids, int64_t count, int64_t text_bytes) {
  KLA_CHECK(count >= 1, "a document has at least its end-of-text token");
  for (int64_t i = 0; i < count; ++i)
    KLA_CHECK(ids[i] >= 0 && ids[i] < header_.vocab_size, "token id within the vocabulary");
  starts_.push_back(static_cast<uint64_t>(header_.tokens));
  if (header_.bytes_per_token == 2) {
    narrow_.resize(static_cast<size_t>(count));
    std::transform(ids, ids + count, narrow_.begin(),
                   [](int32_t id) { return static_cast<uint16_t>(id); });
    put(narrow_.data(), narrow_.size() * sizeof(uint16_t));
  } else {
    put(ids, static_cast<size_t>(count) * sizeof(int32_t));
  }
  header_.tokens += count;
  header_.documents += 1;
  header_.text_bytes += text_bytes;
}

ShardHeader ShardWriter::finish() {
  const char zeros[8] = {};
  const int64_t end_of_tokens = kShardPage + header_.tokens * header_.bytes_per_token;
  put(zeros, static_cast<size_t>(header_.starts_offset() - end_of_tokens));
  put(starts_.data(), starts_.size() * sizeof(uint64_t));
  header_.payload_xxh3 = payload_.hex();
  if (::lseek(file_.descriptor(), 0, SEEK_SET) != 0)
    throw_errno("cannot write '" + file_.path() + "'");
  file_.write(pack(header_).data(), kShardPage);
  file_.sync();
  file_.close();
  return header_;
}

ShardReader::ShardReader(const std::string& path) : file_(File::open_read(path)) {
  Page page;
  if (file_.read_at(page.data(), page.size(), 0) != page.size())
    damaged(path, "cut short: " + std::to_string(file_.size()) + " bytes, no whole header");
  header_ = unpack(page, path);
  if (file_.size() != header_.file_bytes())
    damaged(path, std::to_string(file_.size()) + " bytes, but its header promises " +
                      std::to_string(header_.file_bytes()) + " (cut short or grown)");
  starts_.resize(static_cast<size_t>(header_.documents));
  read_bytes(starts_.data(), 8 * header_.documents, header_.starts_offset());
  for (size_t i = 0; i < starts_.size(); ++i) {
    const bool ascends = i == 0 ? starts_[0] == 0 : starts_[i] > starts_[i - 1];
    if (!ascends || starts_[i] >= static_cast<uint64_t>(header_.tokens))
      damaged(path, "document " + std::to_string(i) + " starts at an impossible place (offset " +
                        std::to_string(header_.starts_offset() + 8 * static_cast<int64_t>(i)) +
                        ")");
  }
}

void ShardReader::read_bytes(void* data, int64_t bytes, int64_t offset) const {
  if (file_.read_at(data, static_cast<size_t>(bytes), offset) != static_cast<size_t>(bytes))
    damaged(path(), "became shorter while it was read, at offset " + std::to_string(offset));
}

void ShardReader::verify_payload() const {
  Xxh3Stream hash;
  std::vector<char> block(1 << 20);
  for (int64_t offset = kShardPage; offset < header_.file_bytes();) {
    const int64_t bytes =
        std::min(static_cast<int64_t>(block.size()), header_.file_bytes() - offset);
    read_bytes(block.data(), bytes, offset);
    hash.update(block.data(), static_cast<size_t>(bytes));
    offset += bytes;
  }
  if (hash.hex() != header_.payload_xxh3)
    damaged(path(),
            "its content is damaged: XXH3 " + hash.hex() + ", expected " + header_.payload_xxh3);
}

template <class Stored>
void ShardReader::read_as(int64_t first, int64_t count, int32_t* out) const {
  constexpr int64_t kBlock = 16384;
  Stored block[kBlock];
  const auto limit = static_cast<uint64_t>(header_.vocab_size);
  for (int64_t done = 0; done < count; done += kBlock) {
    const int64_t n = std::min(kBlock, count - done);
    const int64_t offset = kShardPage + (first + done) * static_cast<int64_t>(sizeof(Stored));
    read_bytes(block, n * static_cast<int64_t>(sizeof(Stored)), offset);
    Stored largest = 0;  // one branch-free pass; the culprit is looked for only if there is one
    for (int64_t i = 0; i < n; ++i) {
      largest = std::max(largest, block[i]);
      out[done + i] = static_cast<int32_t>(block[i]);
    }
    if (largest < limit) continue;
    const int64_t bad =
        std::find_if(block, block + n, [&](Stored id) { return id >= limit; }) - block;
    damaged(path(), "token id " + std::to_string(block[bad]) + " at offset " +
                        std::to_string(offset + bad * static_cast<int64_t>(sizeof(Stored))) +
                        " is beyond the vocabulary of " + std::to_string(limit));
  }
}

void ShardReader::read(int64_t first, int64_t count, int32_t* out) const {
  KLA_CHECK(first >= 0 && count >= 0 && first + count <= header_.tokens, "token range");
  if (header_.bytes_per_token == 2)
    read_as<uint16_t>(first, count, out);
  else
    read_as<uint32_t>(first, count, out);
}

}  // namespace kla
