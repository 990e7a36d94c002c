// Runs the real `kla` binary as a process that a test may stop, signal and kill.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace kla::testing {

struct ProgramEnd {
  int exit_code = -1;  // -1: ended by a signal
  int signal = 0;
  std::string output, errors;  // stdout and stderr
};

class Program {
 public:
  // `folder`: working directory, and where its output is kept until wait(). Standard input is
  // empty.
  Program(const std::string& folder, const std::vector<std::string>& arguments);
  ~Program();  // kills it if it still runs
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  pid_t id() const { return id_; }
  void send(int signal) const;
  ProgramEnd wait();

 private:
  std::string output_, errors_;
  pid_t id_ = -1;
};

ProgramEnd run_program(const std::string& folder, const std::vector<std::string>& arguments);

}  // namespace kla::testing
