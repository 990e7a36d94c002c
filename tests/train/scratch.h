// A directory that lives as long as a test, and what an Error said.
#pragma once

#include <gtest/gtest.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <utility>

#include "core/error.h"
#include "core/file.h"

namespace kla::testing {

class ScratchDirectory {
 public:
  ScratchDirectory() {
    const bool shm = ::access("/dev/shm", W_OK) == 0;  // an fsync costs nothing there
    const std::filesystem::path base = shm ? "/dev/shm" : std::filesystem::temp_directory_path();
    std::string name = (base / "kla-test-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw_errno("cannot create '" + name + "'");
    path_ = name;
  }
  ~ScratchDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;

  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A small file system in memory, where root may mount one.
class SmallDisk {
 public:
  explicit SmallDisk(const std::string& options)
      : mounted_(::mount("none", path().c_str(), "tmpfs", 0, options.c_str()) == 0) {}
  ~SmallDisk() {
    if (mounted_) ::umount2(path().c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }
  bool make_read_only() const {
    return ::mount("none", path().c_str(), "tmpfs", MS_REMOUNT | MS_RDONLY, "") == 0;
  }
  const std::string& path() const { return scratch_.path(); }

 private:
  ScratchDirectory scratch_;
  bool mounted_;
};

inline void write_file(const std::string& path, const std::string& content) {
  std::filesystem::remove(path);
  File file = File::create_new(path);
  file.write(content);
  file.close();
}

struct Caught {
  Exit code = Exit::ok;
  std::string message;
};

// What `action` throws; Exit::ok if nothing.
template <class Action>
Caught caught(Action&& action) {
  try {
    std::forward<Action>(action)();
  } catch (const Error& e) {
    return {e.code(), e.what()};
  }
  return {};
}

#define EXPECT_REFUSED(code_, words, action)                                        \
  do {                                                                              \
    const ::kla::testing::Caught refused = ::kla::testing::caught([&] { action; }); \
    EXPECT_EQ(refused.code, code_) << refused.message;                              \
    EXPECT_NE(refused.message.find(words), std::string::npos) << refused.message;   \
  } while (false)

}  // namespace kla::testing
