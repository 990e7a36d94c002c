// Corpus: documents out of .txt files (one document a file) and .jsonl files (one a line, in a
// field), plain, .gz or .zst, streamed in a fixed order. Memory stays bounded whatever the files
// claim: lines, zstd windows and expansion are capped.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace kla {

struct CorpusPolicy {
  std::string text_field = "text";        // of .jsonl objects
  bool stop_on_bad_document = false;      // else bad documents are skipped and counted
  int64_t max_document_bytes = 64 << 20;  // a .jsonl line or a .txt file
  int64_t max_expansion = 1000;           // decompressed / compressed bytes, past the first 64 MiB
};

struct CorpusCounts {
  int64_t documents = 0;      // handed out
  int64_t empty = 0;          // left out: no text
  int64_t invalid_utf8 = 0;   // left out
  int64_t too_long = 0;       // left out: beyond max_document_bytes
  int64_t malformed = 0;      // left out: not a JSON object
  int64_t missing_field = 0;  // left out: no text field, or not a string
  int64_t skipped() const { return invalid_utf8 + too_long + malformed + missing_field; }
  CorpusCounts& operator+=(const CorpusCounts& other);
};

struct CorpusFile {
  std::string path;
  int64_t bytes;  // on disk
};

// The corpus files below `inputs` (files or folders, searched recursively), each input's sorted by
// path. Error{io} if an input is missing, Error{data} if there is nothing to read in one.
std::vector<CorpusFile> list_corpus(const std::vector<std::string>& inputs);

class CorpusReader {
 public:
  CorpusReader(std::vector<CorpusFile> files, CorpusPolicy policy);
  ~CorpusReader();

  // The next document, valid UTF-8 and not empty; false at the end. Error{data} for a damaged
  // compressed file, and for a bad document if the policy says stop.
  bool next(std::string& document);

  const CorpusCounts& counts() const;
  int64_t bytes_read() const;  // of the files on disk, for a progress bar

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kla
