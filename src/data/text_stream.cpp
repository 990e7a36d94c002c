#include "data/text_stream.h"

#define ZLIB_CONST  // zlib takes const input
#include <zlib.h>
#include <zstd.h>

#include <vector>

#include "core/error.h"

namespace kla {
namespace {

constexpr size_t kInputBlock = 256 << 10;
constexpr int64_t kFreeExpansion = 64
                                   << 20;  // bytes: small files may compress as well as they like
constexpr int kMaxZstdWindowLog = 27;      // 128 MiB
constexpr int kGzipWindowBits = 15 + 16;   // the largest window, gzip wrapping only

class PlainStream final : public TextStream {
 public:
  explicit PlainStream(File file) : TextStream(std::move(file)) {}
  size_t read(char* data, size_t bytes) override { return read_file(data, bytes); }
};

// What both decompressors share: an input block and the guard against bombs.
class CompressedStream : public TextStream {
 public:
  size_t read(char* data, size_t bytes) final {
    size_t produced = 0;
    while (produced == 0) {
      if (used_ == filled_ && !output_pending_) {
        filled_ = read_file(input_.data(), input_.size());
        used_ = 0;
        if (filled_ == 0) break;
      }
      produced = decompress(data, bytes);
      output_pending_ = produced == bytes;
    }
    if (produced == 0 && !complete()) damaged("is cut short");
    output_ += static_cast<int64_t>(produced);
    if (output_ > kFreeExpansion && output_ / max_expansion_ > bytes_read())
      damaged("expands more than " + std::to_string(max_expansion_) + " times: not text");
    return produced;
  }

 protected:
  CompressedStream(File file, int64_t max_expansion)
      : TextStream(std::move(file)), max_expansion_(max_expansion), input_(kInputBlock) {}

  // Takes from next_input(), calls consume(), returns the bytes produced (0: wants more input).
  // Called without input too, when the last call filled its output and may hold more.
  virtual size_t decompress(char* data, size_t bytes) = 0;
  virtual bool complete() const = 0;  // the input may end here

  const char* next_input() const { return input_.data() + used_; }
  size_t available() const { return filled_ - used_; }
  void consume(size_t bytes) { used_ += bytes; }
  [[noreturn]] void damaged(const std::string& what) const {
    throw Error(Exit::data, "compressed file '" + path() + "' " + what,
                "get or make the file again, or take it out of the inputs");
  }

 private:
  int64_t max_expansion_, output_ = 0;
  std::vector<char> input_;
  size_t filled_ = 0, used_ = 0;
  bool output_pending_ = false;
};

class GzipStream final : public CompressedStream {
 public:
  GzipStream(File file, int64_t max_expansion) : CompressedStream(std::move(file), max_expansion) {
    KLA_CHECK(inflateInit2(&zlib_, kGzipWindowBits) == Z_OK, "zlib");
  }
  ~GzipStream() override { inflateEnd(&zlib_); }

 private:
  size_t decompress(char* data, size_t bytes) override {
    if (member_done_) {  // a .gz may be several members one after the other
      if (available() == 0) return 0;
      inflateReset(&zlib_);
      member_done_ = false;
    }
    zlib_.next_in = reinterpret_cast<const Bytef*>(next_input());
    zlib_.avail_in = static_cast<uInt>(available());
    zlib_.next_out = reinterpret_cast<Bytef*>(data);
    zlib_.avail_out = static_cast<uInt>(bytes);
    const int result = inflate(&zlib_, Z_NO_FLUSH);
    if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR)
      damaged("is damaged: " + std::string(zlib_.msg ? zlib_.msg : "not gzip data"));
    consume(available() - zlib_.avail_in);
    member_done_ = result == Z_STREAM_END;
    return bytes - zlib_.avail_out;
  }
  bool complete() const override { return member_done_; }

  z_stream zlib_{};
  bool member_done_ = false;
};

class ZstdStream final : public CompressedStream {
 public:
  ZstdStream(File file, int64_t max_expansion)
      : CompressedStream(std::move(file), max_expansion), zstd_(ZSTD_createDStream()) {
    KLA_CHECK(zstd_ != nullptr, "zstd");
    ZSTD_DCtx_setParameter(zstd_, ZSTD_d_windowLogMax, kMaxZstdWindowLog);
  }
  ~ZstdStream() override { ZSTD_freeDStream(zstd_); }

 private:
  size_t decompress(char* data, size_t bytes) override {
    if (frame_done_ && available() == 0) return 0;
    ZSTD_inBuffer input{next_input(), available(), 0};
    ZSTD_outBuffer output{data, bytes, 0};
    const size_t result = ZSTD_decompressStream(zstd_, &output, &input);
    if (ZSTD_isError(result)) damaged("is damaged: " + std::string(ZSTD_getErrorName(result)));
    consume(input.pos);
    frame_done_ = result == 0;
    return output.pos;
  }
  bool complete() const override { return frame_done_; }

  ZSTD_DStream* zstd_;
  bool frame_done_ = false;
};

}  // namespace

std::unique_ptr<TextStream> TextStream::open(const std::string& path, int64_t max_expansion) {
  File file = File::open_read(path);
  if (path.ends_with(".gz")) return std::make_unique<GzipStream>(std::move(file), max_expansion);
  if (path.ends_with(".zst")) return std::make_unique<ZstdStream>(std::move(file), max_expansion);
  return std::make_unique<PlainStream>(std::move(file));
}

size_t TextStream::read_file(char* data, size_t bytes) {
  const size_t n = file_.read_at(data, bytes, offset_);
  offset_ += static_cast<int64_t>(n);
  return n;
}

}  // namespace kla
