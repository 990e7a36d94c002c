#include "data/corpus.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>

#include "core/error.h"
#include "core/log.h"
#include "core/utf8.h"
#include "data/jsonl.h"
#include "data/text_stream.h"

namespace kla {
namespace {

namespace fs = std::filesystem;

constexpr size_t kBlock = 1 << 20;

enum class Kind { none, text, jsonl };

Kind kind_of(std::string_view path) {
  for (const std::string_view wrapping : {".gz", ".zst"})
    if (path.ends_with(wrapping)) {
      path.remove_suffix(wrapping.size());
      break;
    }
  if (path.ends_with(".txt")) return Kind::text;
  if (path.ends_with(".jsonl")) return Kind::jsonl;
  return Kind::none;
}

std::string unreadable_hint(const std::string& path) {
  if (path.ends_with(".parquet"))
    return "turn it into .jsonl.zst first; tools/fetch_slimpajama.py shows how";
  return "inputs are .txt and .jsonl files, plain or with .gz or .zst, or folders of them";
}

// Sorted by path, so that the order of documents does not depend on the file system.
std::vector<CorpusFile> list_folder(const std::string& folder) {
  std::vector<CorpusFile> files;
  try {
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      const std::string path = entry.path().string();
      if (entry.is_regular_file() && kind_of(path) != Kind::none)
        files.push_back({path, static_cast<int64_t>(entry.file_size())});
    }
  } catch (const fs::filesystem_error& e) {
    throw Error(Exit::io, "cannot list '" + folder + "': " + e.code().message());
  }
  std::sort(files.begin(), files.end(),
            [](const CorpusFile& a, const CorpusFile& b) { return a.path < b.path; });
  return files;
}

}  // namespace

CorpusCounts& CorpusCounts::operator+=(const CorpusCounts& other) {
  documents += other.documents;
  empty += other.empty;
  invalid_utf8 += other.invalid_utf8;
  too_long += other.too_long;
  malformed += other.malformed;
  missing_field += other.missing_field;
  return *this;
}

std::vector<CorpusFile> list_corpus(const std::vector<std::string>& inputs) {
  std::vector<CorpusFile> files;
  for (const std::string& input : inputs) {
    std::error_code error;
    if (!fs::exists(input, error))
      throw Error(Exit::io, "corpus '" + input + "' does not exist",
                  "correct the path in the config, or fetch the corpus (see data/README.md)");
    if (fs::is_directory(input)) {
      const std::vector<CorpusFile> found = list_folder(input);
      if (found.empty())
        throw Error(Exit::data, "no .txt or .jsonl files in '" + input + "'", unreadable_hint(""));
      files.insert(files.end(), found.begin(), found.end());
    } else if (kind_of(input) != Kind::none) {
      files.push_back({input, static_cast<int64_t>(fs::file_size(input))});
    } else {
      throw Error(Exit::data, "cannot read '" + input + "' as text", unreadable_hint(input));
    }
  }
  return files;
}

struct CorpusReader::State {
  std::vector<CorpusFile> files;
  CorpusPolicy policy;
  CorpusCounts counts;
  size_t next_file = 0;
  int64_t bytes_done = 0;  // of the files before the current one
  std::unique_ptr<TextStream> stream;
  std::string path;
  bool jsonl = false;  // a document a line
  int64_t line = 0;
  std::string raw;  // the current line or file
  std::vector<char> block = std::vector<char>(kBlock);
  size_t begin = 0, end = 0;  // of what is not consumed in `block`
  bool at_end = false;        // of the stream

  bool open_next();
  bool refill();
  bool read_piece(bool& too_long);
  bool accept(std::string& document);
  void reject(int64_t& count, const std::string& why);
};

bool CorpusReader::State::open_next() {
  if (stream) bytes_done += stream->bytes_read();
  stream.reset();
  if (next_file == files.size()) return false;
  path = files[next_file++].path;
  stream = TextStream::open(path, policy.max_expansion);
  jsonl = kind_of(path) == Kind::jsonl;
  line = 0;
  begin = end = 0;
  at_end = false;
  return true;
}

bool CorpusReader::State::refill() {
  if (begin < end) return true;
  if (at_end) return false;
  begin = 0;
  end = stream->read(block.data(), block.size());
  at_end = end == 0;
  return !at_end;
}

// The next line of a .jsonl file without its newline, or the whole of a .txt file, into `raw`;
// false if nothing is left. What is beyond the limit is read over, not kept.
bool CorpusReader::State::read_piece(bool& too_long) {
  raw.clear();
  too_long = false;
  if (!refill()) return false;
  ++line;
  bool complete = false;
  while (!complete && refill()) {
    const char* first = block.data() + begin;
    size_t count = end - begin, newline = 0;
    if (jsonl) {
      if (const void* found = std::memchr(first, '\n', count)) {
        count = static_cast<size_t>(static_cast<const char*>(found) - first);
        newline = 1;
        complete = true;
      }
    }
    too_long = too_long || static_cast<int64_t>(raw.size() + count) > policy.max_document_bytes;
    if (!too_long) raw.append(first, count);
    begin += count + newline;
  }
  return true;
}

void CorpusReader::State::reject(int64_t& count, const std::string& why) {
  const std::string place = path + (jsonl ? ":" + std::to_string(line) : "");
  if (policy.stop_on_bad_document)
    throw Error(Exit::data, place + ": " + why, "repair it, or set bad_documents: skip");
  if (++count == 1) log::warning(place + ": " + why + "; skipped (later ones are only counted)");
}

// Puts the document in `raw` into `document`, or counts why there is none.
bool CorpusReader::State::accept(std::string& document) {
  if (!valid_utf8(raw)) {
    reject(counts.invalid_utf8, "not valid UTF-8");
    return false;
  }
  if (!jsonl) {
    document.swap(raw);
  } else if (raw.find_first_not_of(" \t\r") == std::string::npos) {
    return false;  // an empty line is no document
  } else {
    const JsonLine result = read_json_field(raw, policy.text_field, document);
    if (result == JsonLine::malformed) reject(counts.malformed, "not a JSON object");
    if (result == JsonLine::missing_field)
      reject(counts.missing_field, "no text in field '" + policy.text_field + "'");
    if (result != JsonLine::ok) return false;
  }
  if (document.empty()) {
    ++counts.empty;
    return false;
  }
  ++counts.documents;
  return true;
}

CorpusReader::CorpusReader(std::vector<CorpusFile> files, CorpusPolicy policy)
    : state_(std::make_unique<State>()) {
  state_->files = std::move(files);
  state_->policy = std::move(policy);
}
CorpusReader::~CorpusReader() = default;

bool CorpusReader::next(std::string& document) {
  State& s = *state_;
  for (;;) {
    bool too_long = false;
    while (!s.stream || !s.read_piece(too_long))
      if (!s.open_next()) return false;
    if (too_long)
      s.reject(s.counts.too_long,
               "longer than " + std::to_string(s.policy.max_document_bytes) + " bytes");
    else if (s.accept(document))
      return true;
  }
}

const CorpusCounts& CorpusReader::counts() const {
  return state_->counts;
}

int64_t CorpusReader::bytes_read() const {
  return state_->bytes_done + (state_->stream ? state_->stream->bytes_read() : 0);
}

}  // namespace kla
