#include "core/child.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "core/error.h"
#include "core/file.h"

namespace kla {
namespace {

// In the child, between fork and exec: async-signal-safe calls only. The parent's handlers must not
// swallow a signal that is meant for the program to come.
[[noreturn]] void become(char* const* argv, int output, const sigset_t& mask, pid_t parent) {
  for (int signal : {SIGINT, SIGTERM, SIGUSR1, SIGHUP, SIGPIPE}) ::signal(signal, SIG_DFL);
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  const int input = ::open("/dev/null", O_RDONLY);
  const bool good = input >= 0 && ::dup2(input, STDIN_FILENO) >= 0 &&
                    ::dup2(output, STDOUT_FILENO) >= 0 && ::dup2(output, STDERR_FILENO) >= 0;
  ::sigprocmask(SIG_SETMASK, &mask, nullptr);
  if (good && ::getppid() == parent) ::execv("/proc/self/exe", argv);
  ::_exit(static_cast<int>(Exit::io));
}

}  // namespace

Child::Child(const std::vector<std::string>& arguments, const std::string& output) {
  std::vector<std::string> words = {"kla"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const File file = File::append(output);

  sigset_t all, mask;
  ::sigfillset(&all);
  ::sigprocmask(SIG_BLOCK, &all, &mask);
  const pid_t parent = ::getpid();
  id_ = ::fork();
  if (id_ == 0) become(argv.data(), file.descriptor(), mask, parent);
  const int error = errno;
  ::sigprocmask(SIG_SETMASK, &mask, nullptr);
  errno = error;
  if (id_ < 0) throw_errno("cannot start another process");
}

Child::Child(Child&& other) noexcept : id_(std::exchange(other.id_, -1)) {}

Child::~Child() {
  if (id_ < 0) return;
  ::kill(id_, SIGKILL);
  while (::waitpid(id_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

void Child::send(int signal) const {
  if (id_ > 0) ::kill(id_, signal);
}

std::optional<int> Child::poll() {
  int status = 0;
  const pid_t ended = ::waitpid(id_, &status, WNOHANG);
  if (ended == 0 || (ended < 0 && errno == EINTR)) return std::nullopt;
  if (ended < 0) throw_errno("cannot wait for a child process");
  id_ = -1;
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace kla
