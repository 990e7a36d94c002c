#include "tests/train/traced_child.h"

#include <signal.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <iterator>
#include <utility>

#include "core/error.h"

namespace kla::testing {
namespace {

void* offset_of(size_t bytes) {
  return reinterpret_cast<void*>(bytes);
}

void request(__ptrace_request what, pid_t child, size_t address, void* data) {
  if (::ptrace(what, child, offset_of(address), data) < 0) throw_errno("ptrace");
}

int wait_for(pid_t child) {
  int status = 0;
  while (::waitpid(child, &status, 0) < 0)
    if (errno != EINTR) throw_errno("waitpid");
  return status;
}

// The registers that hold a call's number, its third argument and its result.
void replace_call(pid_t child) {  // by one that does nothing
  user_regs_struct registers{};
  request(PTRACE_GETREGS, child, 0, &registers);
  registers.orig_rax = ~0ull;
  request(PTRACE_SETREGS, child, 0, &registers);
}
void set_result(pid_t child, int error) {
  user_regs_struct registers{};
  request(PTRACE_GETREGS, child, 0, &registers);
  registers.rax = static_cast<unsigned long long>(-static_cast<long long>(error));
  request(PTRACE_SETREGS, child, 0, &registers);
}
void shorten_transfer(pid_t child) {
  user_regs_struct registers{};
  request(PTRACE_GETREGS, child, 0, &registers);
  registers.rdx = std::max<unsigned long long>(1, registers.rdx / 2);
  request(PTRACE_SETREGS, child, 0, &registers);
}

pid_t start(const std::function<int()>& work) {
  const pid_t child = ::fork();
  if (child < 0) throw_errno("fork");
  if (child > 0) return child;
  if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) < 0) ::_exit(126);
  ::raise(SIGSTOP);
  ::_exit(work());
}

}  // namespace

std::string SystemCall::text(size_t argument) const {
  std::string value;
  for (uint64_t at = arguments.at(argument); value.size() < PATH_MAX; ++at) {
    char c = 0;
    iovec local{&c, 1}, remote{offset_of(at), 1};
    if (::process_vm_readv(process, &local, 1, &remote, 1, 0) != 1 || c == 0) break;
    value += c;
  }
  return value;
}

std::string SystemCall::descriptor_path(size_t argument) const {
  char target[PATH_MAX];
  const std::string link = "/proc/" + std::to_string(process) + "/fd/" +
                           std::to_string(static_cast<int>(arguments.at(argument)));
  const ssize_t n = ::readlink(link.c_str(), target, sizeof(target));
  return n > 0 ? std::string(target, static_cast<size_t>(n)) : "";
}

ChildEnd run_traced(const std::function<int()>& work,
                    const std::function<Fault(const SystemCall&)>& decide) {
  const pid_t child = start(work);
  int status = wait_for(child);
  request(PTRACE_SETOPTIONS, child, 0, offset_of(PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL));
  int signal = 0, pending_error = 0;
  while (true) {
    request(PTRACE_SYSCALL, child, 0, offset_of(static_cast<size_t>(signal)));
    status = wait_for(child);
    if (WIFEXITED(status)) return {false, WEXITSTATUS(status)};
    if (WIFSIGNALED(status)) throw Error(Exit::internal, "the traced child died by itself");
    signal = 0;
    if (WSTOPSIG(status) != (SIGTRAP | 0x80)) {
      signal = WSTOPSIG(status);
      continue;
    }
    __ptrace_syscall_info info{};
    request(PTRACE_GET_SYSCALL_INFO, child, sizeof(info), &info);
    if (info.op == PTRACE_SYSCALL_INFO_EXIT) {
      if (pending_error != 0) set_result(child, std::exchange(pending_error, 0));
      continue;
    }
    SystemCall call{child, static_cast<int64_t>(info.entry.nr), {}};
    std::copy(std::begin(info.entry.args), std::end(info.entry.args), call.arguments.begin());
    const Fault fault = decide(call);
    if (fault.kind == Fault::kill) {
      ::kill(child, SIGKILL);
      wait_for(child);
      return {true, -1};
    }
    if (fault.kind == Fault::shorten) shorten_transfer(child);
    if (fault.kind == Fault::fail) {
      replace_call(child);
      pending_error = fault.error;
    }
  }
}

}  // namespace kla::testing
