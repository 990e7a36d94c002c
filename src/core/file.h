// Files: whole-file reads, writes that are either complete or absent, and a file descriptor with an
// owner.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace kla {

// Owns a POSIX descriptor. All methods retry EINTR and short transfers and throw Error{io} naming
// the path.
class File {
 public:
  static File open_read(const std::string& path);
  static File create_new(const std::string& path);  // O_EXCL
  static File append(const std::string& path);      // created if missing
  File() = default;
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();

  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  size_t read_at(void* data, size_t bytes,
                 int64_t offset) const;  // fewer bytes only at end of file
  int64_t size() const;
  void truncate(int64_t bytes);
  void sync();   // fsync; an error means the content must be written anew to another file
  void close();  // reports what close() reports
  bool is_open() const { return descriptor_ >= 0; }
  int descriptor() const { return descriptor_; }
  const std::string& path() const { return path_; }

 private:
  File(int descriptor, std::string path) : descriptor_(descriptor), path_(std::move(path)) {}
  int descriptor_ = -1;
  std::string path_;
};

std::string read_file(const std::string& path, int64_t limit = int64_t{1} << 40);  // Error{io}
// temp file, fsync, rename, fsync of the directory: readers see the old content or the new one.
void write_file_atomic(const std::string& path, std::string_view content);
void sync_directory(const std::string& path);
void make_directories(const std::string& path);
bool file_exists(const std::string& path);
int64_t free_bytes(
    const std::string& path);  // for an unprivileged user, on the file system of `path`

}  // namespace kla
