#include "tests/faults/program.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <thread>
#include <utility>

#include "core/error.h"
#include "core/file.h"

namespace kla::testing {
namespace {

void redirect(const std::string& path, int flags, int descriptor) {
  const int opened = ::open(path.c_str(), flags, 0600);
  if (opened < 0 || ::dup2(opened, descriptor) < 0) ::_exit(127);
  ::close(opened);
}

int wait_for(pid_t id) {
  int status = 0;
  while (::waitpid(id, &status, 0) < 0)
    if (errno != EINTR) throw_errno("waitpid");
  return status;
}

}  // namespace

Program::Program(const std::string& folder, const std::vector<std::string>& arguments,
                 const Wrapping& wrapping) {
  static int count = 0;
  const std::string stem = folder + "/program-" + std::to_string(count++);
  output_ = stem + ".out";
  errors_ = stem + ".err";
  std::vector<std::string> words = wrapping.before;
  words.emplace_back(KLA_BINARY);
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::replace(words.begin(), words.end(), std::string("@"), std::string(KLA_BINARY));
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  id_ = ::fork();
  if (id_ < 0) throw_errno("fork");
  if (id_ > 0) return;
  redirect("/dev/null", O_RDONLY, STDIN_FILENO);
  redirect(output_, O_WRONLY | O_CREAT | O_TRUNC, STDOUT_FILENO);
  redirect(errors_, O_WRONLY | O_CREAT | O_TRUNC, STDERR_FILENO);
  if (::chdir(folder.c_str()) != 0) ::_exit(127);
  for (const auto& [name, value] : wrapping.environment) ::setenv(name.c_str(), value.c_str(), 1);
  ::execvp(argv[0], argv.data());
  ::_exit(127);
}

Program::~Program() {
  if (id_ < 0) return;
  ::kill(id_, SIGKILL);
  ::waitpid(id_, nullptr, 0);
}

void Program::send(int signal) const {
  if (::kill(id_, signal) != 0) throw_errno("kill");
}

ProgramEnd Program::wait() {
  return end_of(wait_for(std::exchange(id_, -1)));
}

std::optional<ProgramEnd> Program::wait_up_to(std::chrono::milliseconds limit) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  int status = 0;
  while (::waitpid(id_, &status, WNOHANG) == 0) {
    if (std::chrono::steady_clock::now() > deadline) {
      ::kill(id_, SIGKILL);
      wait();
      return std::nullopt;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  id_ = -1;
  return end_of(status);
}

ProgramEnd Program::end_of(int status) {
  ProgramEnd end;
  if (WIFEXITED(status)) end.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) end.signal = WTERMSIG(status);
  if (file_exists(output_)) end.output = read_file(output_);
  if (file_exists(errors_)) end.errors = read_file(errors_);
  return end;
}

ProgramEnd run_program(const std::string& folder, const std::vector<std::string>& arguments) {
  return Program(folder, arguments).wait();
}

}  // namespace kla::testing
