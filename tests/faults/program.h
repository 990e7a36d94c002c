// Runs the real `kla` binary as a process that a test may stop, signal and kill.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace kla::testing {

struct ProgramEnd {
  int exit_code = -1;  // -1: ended by a signal
  int signal = 0;
  std::string output, errors;  // stdout and stderr
};

// Around the program's own words.
struct Wrapping {
  std::vector<std::string> before;                 // another program that starts it: mpirun -n 2
  std::map<std::string, std::string> environment;  // set in addition
};

class Program {
 public:
  // `folder`: working directory, and where its output is kept until wait(). Standard input is
  // empty. An argument "@" stands for the program itself.
  Program(const std::string& folder, const std::vector<std::string>& arguments,
          const Wrapping& wrapping = {});
  ~Program();  // kills it if it still runs
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  pid_t id() const { return id_; }
  void send(int signal) const;
  ProgramEnd wait();
  // Nothing if it still runs after so long; it is then killed.
  std::optional<ProgramEnd> wait_up_to(std::chrono::milliseconds limit);

 private:
  ProgramEnd end_of(int status);

  std::string output_, errors_;
  pid_t id_ = -1;
};

ProgramEnd run_program(const std::string& folder, const std::vector<std::string>& arguments);

}  // namespace kla::testing
