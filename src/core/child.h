// A child process: started with its output in a file, asked to stop, waited for.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

namespace kla {

// Runs this very program again. The child has a process group of its own, so that a Ctrl-C on the
// terminal reaches the parent alone, which decides what to forward; it gets SIGTERM when the parent
// dies.
class Child {
 public:
  // `arguments`: without the program's name. Standard output and error are appended to `output`,
  // standard input is empty. Error{io}.
  Child(const std::vector<std::string>& arguments, const std::string& output);
  ~Child();  // SIGKILL, if it still runs
  Child(Child&& other) noexcept;
  Child& operator=(Child&&) = delete;

  void send(int signal) const;
  // The exit code, or 128 + the signal that ended it; nothing while it runs.
  std::optional<int> poll();

 private:
  pid_t id_ = -1;  // -1: ended
};

}  // namespace kla
