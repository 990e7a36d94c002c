// What the tests of several ranks share: the micro run of tests/faults, started by mpirun or with
// torchrun's variables.
#pragma once

#include <dirent.h>

#include <fstream>
#include <memory>

#include "tests/distributed/threads.h"
#include "tests/faults/micro_run.h"

namespace kla::testing {

using namespace std::chrono_literals;

// The longest any of these runs may take on a busy machine; none may hang.
inline constexpr auto kPatience = 120s;

inline bool have_mpirun() {
  return std::system("mpirun --version > /dev/null 2>&1") == 0;
}

class RankRun : public MicroRun {
 protected:
  void SetUp() override {
    if (!have_mpirun()) GTEST_SKIP() << "mpirun is not installed (openmpi-bin)";
  }

  // For mpirun as root in a container, with more ranks than cores and no ptrace between them; and
  // without the second it gives ranks to die.
  static std::vector<std::string> mpirun(int ranks) {
    std::vector<std::string> words = {"mpirun", "--oversubscribe", "--bind-to", "none"};
    const std::map<std::string, std::string> parameters = {
        {"btl_vader_single_copy_mechanism", "none"}, {"odls_base_sigkill_timeout", "0"}};
    for (const auto& [name, value] : parameters) words.insert(words.end(), {"--mca", name, value});
    words.insert(words.end(), {"-n", std::to_string(ranks)});
    return words;
  }
  static Wrapping under_mpirun(int ranks) {
    return {mpirun(ranks),
            {{"OMPI_ALLOW_RUN_AS_ROOT", "1"},
             {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"},
             {"ASAN_OPTIONS", "detect_leaks=0"}}};  // Open MPI keeps memory until the end
  }

  // Four micro-batches of one sample a step, so that 1, 2 and 4 ranks can share them.
  static std::vector<std::string> shared(const std::string& name,
                                         std::vector<std::string> more = {}) {
    more.emplace_back("train.micro_batch_size=1");
    return train(name, more);
  }
  static std::vector<std::string> strict(const std::string& name,
                                         std::vector<std::string> more = {}) {
    more.emplace_back("device.deterministic=strict");
    return shared(name, more);
  }

  static ProgramEnd run(const std::vector<std::string>& words, const Wrapping& wrapping) {
    Program program(folder(), words, wrapping);
    const auto end = program.wait_up_to(kPatience);
    if (!end) ADD_FAILURE() << "the run hangs";
    return end.value_or(ProgramEnd{});
  }
  static ProgramEnd run_on(int ranks, const std::vector<std::string>& words) {
    return ranks == 1 ? kla(words) : run(words, under_mpirun(ranks));
  }

  // The processes of the ranks that this mpirun has started, by rank; fewer while it starts them.
  static std::map<int, pid_t> processes_of(pid_t mpirun) {
    std::map<int, pid_t> found;
    for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
      const pid_t id = std::atoi(entry.path().filename().c_str());
      if (id <= 0 || parent_of(id) != mpirun) continue;
      const std::string rank = variable_of(id, "OMPI_COMM_WORLD_RANK=");
      if (!rank.empty()) found[std::stoi(rank)] = id;
    }
    return found;
  }

 private:
  static pid_t parent_of(pid_t process) {
    std::ifstream status("/proc/" + std::to_string(process) + "/status");
    for (std::string line; std::getline(status, line);)
      if (line.rfind("PPid:", 0) == 0) return std::atoi(line.c_str() + 5);
    return 0;
  }
  static std::string variable_of(pid_t process, const std::string& name) {
    std::ifstream variables("/proc/" + std::to_string(process) + "/environ");
    for (std::string entry; std::getline(variables, entry, '\0');)
      if (entry.rfind(name, 0) == 0) return entry.substr(name.size());
    return "";
  }
};

// The ranks of one run as processes of their own, with torchrun's variables.
class TorchrunStyle {
 public:
  TorchrunStyle(const std::string& folder, int ranks, const std::vector<std::string>& words) {
    const std::string port = std::to_string(free_port());
    for (int rank = 0; rank < ranks; ++rank) {
      const std::string number = std::to_string(rank);
      programs_.push_back(std::make_unique<Program>(folder, words,
                                                    Wrapping{{},
                                                             {{"RANK", number},
                                                              {"LOCAL_RANK", number},
                                                              {"WORLD_SIZE", std::to_string(ranks)},
                                                              {"MASTER_ADDR", "127.0.0.1"},
                                                              {"MASTER_PORT", port}}}));
    }
  }
  Program& operator[](int rank) { return *programs_[static_cast<size_t>(rank)]; }
  ProgramEnd wait(int rank) {
    const auto end = (*this)[rank].wait_up_to(kPatience);
    if (!end) ADD_FAILURE() << "rank " << rank << " hangs";
    return end.value_or(ProgramEnd{});
  }

 private:
  std::vector<std::unique_ptr<Program>> programs_;
};

inline int count_of(const std::string& text, const std::string& word) {
  int count = 0;
  for (size_t at = 0; (at = text.find(word, at)) != std::string::npos; at += word.size()) ++count;
  return count;
}

}  // namespace kla::testing
