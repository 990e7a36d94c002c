#include "data/staged_output.h"

#include <sys/file.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "core/error.h"

namespace kla {
namespace {

namespace fs = std::filesystem;

constexpr const char* kMark = ".kla-partial";  // lock file, and the sign that the folder is ours

std::string without_trailing_slash(std::string name) {
  while (name.size() > 1 && name.back() == '/') name.pop_back();
  return name;
}

}  // namespace

StagedOutput::StagedOutput(const std::string& name)
    : name_(without_trailing_slash(name)), partial_(name_ + ".partial") {
  const std::string mark = partial_ + "/" + kMark;
  if (file_exists(partial_) && !file_exists(mark) && !fs::is_empty(partial_))
    throw Error(Exit::io, "'" + partial_ + "' is in the way", "move it elsewhere");
  make_directories(partial_);
  File lock = File::append(mark);
  if (::flock(lock.descriptor(), LOCK_EX | LOCK_NB) != 0)
    throw Error(Exit::io, "another process is preparing '" + name_ + "'",
                "wait for it, or choose another output");
  lock_ = std::move(lock);
  for (const auto& entry : fs::directory_iterator(partial_))
    if (entry.path().filename() != kMark) fs::remove_all(entry.path());
}

StagedOutput::~StagedOutput() {
  std::error_code ignored;
  if (lock_.is_open()) fs::remove_all(partial_, ignored);
}

void StagedOutput::commit() {
  sync_directory(partial_);
  if (std::remove((partial_ + "/" + kMark).c_str()) != 0)
    throw_errno("cannot write '" + partial_ + "'");
  if (std::rename(partial_.c_str(), name_.c_str()) != 0)
    throw_errno("cannot rename '" + partial_ + "' to '" + name_ + "'");
  lock_ = File();
  sync_directory(fs::path(name_).parent_path().string());
}

}  // namespace kla
