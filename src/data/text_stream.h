// TextStream: the bytes of a plain, .gz or .zst file, decompressed while reading.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/file.h"

namespace kla {

class TextStream {
 public:
  // Chosen by the end of the name. Errors name the file: Error{io}, and Error{data} for damaged or
  // cut short compressed data, a zstd window over 128 MiB, or data that expands more than
  // `max_expansion` times (looked at beyond the first 64 MiB).
  static std::unique_ptr<TextStream> open(const std::string& path, int64_t max_expansion);
  virtual ~TextStream() = default;

  virtual size_t read(char* data, size_t bytes) = 0;  // 0 only at the end
  int64_t bytes_read() const { return offset_; }      // of the file on disk

 protected:
  explicit TextStream(File file) : file_(std::move(file)) {}
  size_t read_file(char* data, size_t bytes);
  const std::string& path() const { return file_.path(); }

 private:
  File file_;
  int64_t offset_ = 0;
};

}  // namespace kla
