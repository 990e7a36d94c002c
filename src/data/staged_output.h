// StagedOutput: a folder that is either complete or absent. Files are written into NAME.partial,
// which becomes NAME by one rename; what an interrupted process left there is cleared by the next.
#pragma once

#include <string>

#include "core/file.h"

namespace kla {

class StagedOutput {
 public:
  // Error{io} if another process is writing the same output, or NAME.partial is not ours to clear.
  explicit StagedOutput(const std::string& name);
  ~StagedOutput();  // without commit(): removes what was written
  StagedOutput(const StagedOutput&) = delete;
  StagedOutput& operator=(const StagedOutput&) = delete;

  const std::string& path() const { return partial_; }  // write here
  void commit();

 private:
  std::string name_, partial_;
  File lock_;
};

}  // namespace kla
