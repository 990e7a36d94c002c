#include "core/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "core/error.h"

namespace kla {
namespace {

int open_or_throw(const std::string& path, int flags, const char* purpose) {
  int fd;
  do fd = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  while (fd < 0 && errno == EINTR);
  if (fd < 0) throw_errno(std::string("cannot ") + purpose + " '" + path + "'");
  return fd;
}

void sync_or_throw(int fd, const std::string& path) {
  int result;
  do result = ::fsync(fd);
  while (result != 0 && errno == EINTR);
  if (result != 0) throw_errno("cannot write '" + path + "' to disk");
}

}  // namespace

File File::open_read(const std::string& path) {
  return File(open_or_throw(path, O_RDONLY, "read"), path);
}
File File::create_new(const std::string& path) {
  return File(open_or_throw(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, "create"), path);
}
File File::append(const std::string& path) {
  return File(open_or_throw(path, O_RDWR | O_CREAT | O_APPEND | O_NOFOLLOW, "write"), path);
}

File::File(File&& other) noexcept : descriptor_(other.descriptor_), path_(std::move(other.path_)) {
  other.descriptor_ = -1;
}
File& File::operator=(File&& other) noexcept {
  if (this != &other) {
    if (descriptor_ >= 0) ::close(descriptor_);
    descriptor_ = other.descriptor_;
    path_ = std::move(other.path_);
    other.descriptor_ = -1;
  }
  return *this;
}
File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void File::write(const void* data, size_t bytes) {
  const char* p = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(descriptor_, p, bytes);
    if (n < 0) {
      if (errno == EINTR) continue;
      throw_errno("cannot write '" + path_ + "'");
    }
    p += n;
    bytes -= static_cast<size_t>(n);
  }
}

size_t File::read_at(void* data, size_t bytes, int64_t offset) const {
  char* p = static_cast<char*>(data);
  size_t done = 0;
  while (done < bytes) {
    const ssize_t n =
        ::pread(descriptor_, p + done, bytes - done, offset + static_cast<int64_t>(done));
    if (n < 0) {
      if (errno == EINTR) continue;
      throw_errno("cannot read '" + path_ + "'");
    }
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  return done;
}

int64_t File::size() const {
  struct stat info {};
  if (::fstat(descriptor_, &info) != 0) throw_errno("cannot read '" + path_ + "'");
  return info.st_size;
}

void File::truncate(int64_t bytes) {
  if (::ftruncate(descriptor_, bytes) != 0) throw_errno("cannot shorten '" + path_ + "'");
}

void File::sync() {
  sync_or_throw(descriptor_, path_);
}

void File::close() {
  if (descriptor_ < 0) return;
  const int fd = descriptor_;
  descriptor_ = -1;
  if (::close(fd) != 0 && errno != EINTR) throw_errno("cannot close '" + path_ + "'");
}

std::string read_file(const std::string& path, int64_t limit) {
  File file = File::open_read(path);
  struct stat info {};
  if (::fstat(file.descriptor(), &info) == 0 && S_ISDIR(info.st_mode)) {
    errno = EISDIR;
    throw_errno("cannot read '" + path + "'");
  }
  std::string content;
  char block[1 << 16];
  while (const size_t n =
             file.read_at(block, sizeof(block), static_cast<int64_t>(content.size()))) {
    content.append(block, n);
    if (static_cast<int64_t>(content.size()) > limit)
      throw Error(Exit::data, "'" + path + "' is larger than " + std::to_string(limit) + " bytes");
  }
  return content;
}

void write_file_atomic(const std::string& path, std::string_view content) {
  const std::string temporary = path + ".tmp";
  ::unlink(temporary.c_str());
  File file = File::create_new(temporary);
  file.write(content);
  file.sync();
  file.close();
  if (::rename(temporary.c_str(), path.c_str()) != 0)
    throw_errno("cannot rename '" + temporary + "' to '" + path + "'");
  sync_directory(std::filesystem::path(path).parent_path().string());
}

void sync_directory(const std::string& path) {
  File directory = File::open_read(path.empty() ? "." : path);
  directory.sync();
}

void make_directories(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) {
    errno = error.value();
    throw_errno("cannot create '" + path + "'");
  }
}

bool file_exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

int64_t free_bytes(const std::string& path) {
  struct statvfs info {};
  if (::statvfs(path.c_str(), &info) != 0)
    throw_errno("cannot read the free space of '" + path + "'");
  return static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
}

}  // namespace kla
