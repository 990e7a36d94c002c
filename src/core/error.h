// The one exception type of the project. A message says what is wrong and where (file, line, key,
// value); the remedy says what to do. main() turns an Error into those two lines and an exit code.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace kla {

// Process exit codes. 75 (EX_TEMPFAIL) asks a scheduler to start the same command again.
enum class Exit {
  ok = 0,
  internal = 1,
  usage = 2,        // command line or config
  data = 3,         // corpus, shard, tokenizer or checkpoint is invalid
  io = 4,           // disk full, permission, read or write error
  numerical = 5,    // the non-finite guard reached its limit
  distributed = 6,  // lost, stuck or diverged rank
  stopped = 75,     // stopped by a signal, a good checkpoint was written
};

class Error : public std::runtime_error {
 public:
  Error(Exit code, const std::string& message, std::string remedy = "")
      : std::runtime_error(message), code_(code), remedy_(std::move(remedy)) {}
  Exit code() const { return code_; }
  const std::string& remedy() const { return remedy_; }

 private:
  Exit code_;
  std::string remedy_;
};

// Throws Error{io} with `what` and the text of errno.
[[noreturn]] void throw_errno(const std::string& what, const std::string& remedy = "");

// Internal invariant: prints expression, place and `detail`. For programming errors, not for user
// input.
[[noreturn]] void check_failed(const char* expression, const char* file, int line,
                               const std::string& detail);

}  // namespace kla

#define KLA_CHECK(expression, detail)                                                \
  do {                                                                               \
    if (!(expression)) ::kla::check_failed(#expression, __FILE__, __LINE__, detail); \
  } while (false)
