#include "distributed/launch.h"

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "core/error.h"
#include "core/log.h"

namespace kla {
namespace {

constexpr int kMaxRanks = 1 << 16;

class Variables {
 public:
  explicit Variables(const Environment& environment) : environment_(environment) {}

  bool has(const char* name) const {
    const char* value = environment_(name);
    return value && *value;
  }
  std::string text(const char* name) const { return has(name) ? environment_(name) : ""; }

  int number(const char* name, int low, int high) const {
    const std::string value = text(name);
    int result = 0;
    const char* end = value.data() + value.size();
    const auto [stop, error] = std::from_chars(value.data(), end, result);
    if (error != std::errc() || stop != end || result < low || result > high)
      throw Error(Exit::usage,
                  "environment variable " + std::string(name) + " is '" + log::printable(value) +
                      "'; it must be a number from " + std::to_string(low) + " to " +
                      std::to_string(high),
                  "start the ranks with mpirun, srun or torchrun, or unset it");
    return result;
  }

  // Nothing unless rank and size are both there.
  std::optional<Launch> ranks(const char* launcher, const char* rank, const char* size,
                              const char* local_rank) const {
    if (!has(rank) || !has(size)) return std::nullopt;
    Launch launch;
    launch.launcher = launcher;
    launch.size = number(size, 1, kMaxRanks);
    launch.rank = number(rank, 0, launch.size - 1);
    if (has(local_rank)) launch.local_rank = number(local_rank, 0, launch.size - 1);
    return launch;
  }

 private:
  const Environment& environment_;
};

// MASTER_ADDR and MASTER_PORT serve every launcher. When torchrun's agent listens on the port
// itself, the next one is ours.
void read_address(const Variables& variables, Launch& launch) {
  if (!variables.has("MASTER_ADDR") || !variables.has("MASTER_PORT")) return;
  launch.address = variables.text("MASTER_ADDR");
  launch.port = variables.number("MASTER_PORT", 1, 65534);
  if (variables.text("TORCHELASTIC_USE_AGENT_STORE") == "True") ++launch.port;
}

std::string in_words(const Launch& launch) {
  return "rank " + std::to_string(launch.rank) + " of " + std::to_string(launch.size);
}

}  // namespace

std::string first_host(const std::string& node_list) {
  const size_t end = node_list.find_first_of(",[");
  const std::string prefix = node_list.substr(0, end);
  if (end == std::string::npos || node_list[end] == ',') return prefix;
  const size_t number = end + 1, stop = node_list.find_first_of(",-]", number);
  if (stop == std::string::npos) return prefix;
  const size_t close = node_list.find(']', stop);
  if (close == std::string::npos) return prefix;
  const size_t tail = node_list.find(',', close);
  return prefix + node_list.substr(number, stop - number) +
         node_list.substr(close + 1, tail == std::string::npos ? tail : tail - close - 1);
}

Launch detect_launch(const Environment& environment) {
  const Variables variables(environment);
  const auto torchrun = variables.ranks("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK");
  const auto open_mpi = variables.ranks("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                                        "OMPI_COMM_WORLD_LOCAL_RANK");
  if (torchrun && open_mpi &&
      (torchrun->rank != open_mpi->rank || torchrun->size != open_mpi->size))
    throw Error(Exit::usage,
                "two launchers disagree: RANK and WORLD_SIZE say " + in_words(*torchrun) +
                    ", mpirun says " + in_words(*open_mpi),
                "unset RANK and WORLD_SIZE, or start without mpirun");
  Launch launch;
  if (torchrun && !open_mpi) {
    launch = *torchrun;
    read_address(variables, launch);
    if (launch.size > 1 && launch.address.empty())
      throw Error(Exit::usage, "RANK and WORLD_SIZE are set, MASTER_ADDR or MASTER_PORT is not",
                  "set them to the host of rank 0 and a free port there");
    return launch;
  }
  if (open_mpi) {
    launch = *open_mpi;
  } else if (variables.has("SLURM_STEP_ID")) {
    launch = variables.ranks("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
                 .value_or(Launch());
  }
  read_address(variables, launch);
  if (launch.launcher == "srun" && launch.address.empty() && variables.has("SLURM_STEP_NODELIST") &&
      variables.has("SLURM_JOB_ID")) {
    launch.address = first_host(variables.text("SLURM_STEP_NODELIST"));
    launch.port = 20000 + variables.number("SLURM_JOB_ID", 0, 1 << 30) % 20000;
  }
  return launch;
}

Launch detect_launch() {
  return detect_launch([](const char* name) -> const char* { return std::getenv(name); });
}

}  // namespace kla
