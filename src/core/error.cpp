#include "core/error.h"

#include <cerrno>
#include <cstring>

namespace kla {

void throw_errno(const std::string& what, const std::string& remedy) {
  const int error = errno;
  std::string hint = remedy;
  if (hint.empty() && (error == ENOSPC || error == EDQUOT))
    hint = "free some space and start again";
  if (hint.empty() && (error == EACCES || error == EROFS || error == EPERM))
    hint = "check the owner and the permissions of that path";
  throw Error(Exit::io, what + ": " + std::strerror(error), hint);
}

void check_failed(const char* expression, const char* file, int line, const std::string& detail) {
  throw Error(Exit::internal,
              std::string("internal check failed: ") + expression + " at " + file + ":" +
                  std::to_string(line) + (detail.empty() ? "" : ": " + detail),
              "this is a bug in kla: please report it with the command line and config.yaml");
}

}  // namespace kla
