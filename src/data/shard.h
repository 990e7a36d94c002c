// Token shards, our on-disk format. Little-endian:
//
//   offset 0      header page, 4096 bytes (ShardHeader, zeros, its XXH3-64 in the last 8 bytes)
//   offset 4096   tokens        uint16 if vocab_size <= 65536, else uint32
//                 zeros up to a multiple of 8
//                 document_starts  uint64[documents]: first token of each document, ascending from
//                 0
//
// The payload is everything behind the header page; the header holds its XXH3-128.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/hash.h"

namespace kla {

inline constexpr int64_t kShardPage = 4096;

struct ShardHeader {
  int64_t bytes_per_token = 2;
  int64_t tokens = 0;
  int64_t documents = 0;
  int64_t vocab_size = 0;
  int64_t text_bytes = 0;        // of the documents, as UTF-8
  std::string tokenizer_sha256;  // 64 hex digits
  std::string payload_xxh3;      // 32 hex digits

  int64_t starts_offset() const { return kShardPage + (tokens * bytes_per_token + 7) / 8 * 8; }
  int64_t file_bytes() const { return starts_offset() + 8 * documents; }
};

class ShardWriter {
 public:
  ShardWriter(const std::string& path, int64_t vocab_size, std::string tokenizer_sha256);

  // One document: ids in [0, vocab_size), count >= 1.
  void add_document(const int32_t* ids, int64_t count, int64_t text_bytes);
  int64_t tokens() const { return header_.tokens; }
  ShardHeader finish();  // the file is complete and on disk

 private:
  void put(const void* data, size_t bytes);

  File file_;
  ShardHeader header_;
  Xxh3Stream payload_;
  std::vector<uint64_t> starts_;
  std::vector<uint16_t> narrow_;
};

class ShardReader {
 public:
  // Checks the header page, the size of the file and the document starts. Error{data} or Error{io}.
  explicit ShardReader(const std::string& path);

  const ShardHeader& header() const { return header_; }
  const std::vector<uint64_t>& document_starts() const { return starts_; }
  const std::string& path() const { return file_.path(); }
  void verify_payload() const;  // reads the whole file; Error{data}

  // Tokens first .. first+count-1, each checked against vocab_size.
  void read(int64_t first, int64_t count, int32_t* out) const;

 private:
  void read_bytes(void* data, int64_t bytes, int64_t offset) const;
  template <class Stored>
  void read_as(int64_t first, int64_t count, int32_t* out) const;

  File file_;
  ShardHeader header_;
  std::vector<uint64_t> starts_;
};

}  // namespace kla
