// Runs a function in a child process, stopped by ptrace before each of its system calls, where a
// test may kill it, make the call fail, or cut a write short: what `strace --inject` does, without
// starting a program for each of hundreds of trials.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <functional>
#include <string>

namespace kla::testing {

struct SystemCall {
  pid_t process = 0;
  int64_t number = 0;  // SYS_write, ...
  std::array<uint64_t, 6> arguments{};

  std::string text(size_t argument) const;             // a path the child passes
  std::string descriptor_path(size_t argument) const;  // what a descriptor of the child refers to
};

struct Fault {
  enum Kind { none, kill, fail, shorten } kind = none;
  int error = 0;  // errno of `fail`
};

struct ChildEnd {
  bool killed = false;
  int exit_code = -1;
};

// `decide` sees every system call before it happens.
ChildEnd run_traced(const std::function<int()>& work,
                    const std::function<Fault(const SystemCall&)>& decide);

}  // namespace kla::testing
