// TokenDataset: the token shards of one split (a folder written by `kla data prepare`) seen as one
// long sequence of token ids, with the places where documents start. Everything is checked before
// it is handed on, and an error names shard and offset. Reads are pread(): a file that shrinks
// under us is an error, not a SIGBUS.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace kla {

enum class Verify {
  headers,  // headers, sizes and document offsets: milliseconds
  payload,  // and the hash of every byte: as fast as the disk
};

class TokenDataset {
 public:
  // `vocab_limit`: the model's vocab_size; a dataset made with a larger vocabulary is refused.
  // 0: no limit. Error{data} or Error{io}.
  static TokenDataset open(const std::string& directory, int64_t vocab_limit, Verify verify);
  TokenDataset(TokenDataset&&) noexcept;
  TokenDataset& operator=(TokenDataset&&) noexcept;
  ~TokenDataset();

  int64_t tokens() const;
  int64_t documents() const;
  int64_t text_bytes() const;  // UTF-8 bytes of the documents these tokens were made from
  int64_t vocab_size() const;  // of the tokenizer
  const std::string& tokenizer_sha256() const;
  const std::string& identity() const;  // hash over the payload hashes of all shards: the content
  const std::string& directory() const;

  // Error{data} unless `sha256` is the tokenizer this dataset was made with; `owner` (a file, a
  // run) names the other side in the message.
  void require_tokenizer(const std::string& sha256, const std::string& owner) const;

  // out[0 .. count): the tokens first .. first+count-1, each checked to be a vocabulary id.
  // Safe to call from several threads.
  void read(int64_t first, int64_t count, int32_t* out) const;

  // flags[i] = 1 where token first+i is the first of its document, else 0.
  void document_starts(int64_t first, int64_t count, uint8_t* flags) const;
  int64_t document_of(int64_t token) const;        // 0 .. documents()-1
  int64_t document_start(int64_t document) const;  // its first token; tokens() for documents()

 private:
  struct State;
  explicit TokenDataset(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace kla
