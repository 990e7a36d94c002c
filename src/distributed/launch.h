// Launch: how this process was started: alone, or as one of several ranks by mpirun, srun or a
// launcher that sets torchrun's variables. Read from the environment only.
#pragma once

#include <functional>
#include <string>

namespace kla {

struct Launch {
  int rank = 0, size = 1;
  int local_rank = 0;    // among the ranks of this host: which of its GPUs is ours
  std::string launcher;  // "mpirun", "srun" or "torchrun"; empty: started alone
  std::string address;   // where rank 0 listens, if the launcher says so
  int port = 0;
};

// The first complete set of variables wins:
//   torchrun   RANK WORLD_SIZE LOCAL_RANK, MASTER_ADDR MASTER_PORT
//   Open MPI   OMPI_COMM_WORLD_RANK _SIZE _LOCAL_RANK
//   Slurm      SLURM_PROCID SLURM_STEP_NUM_TASKS SLURM_LOCALID, inside a step only (SLURM_STEP_ID):
//              the shell of an allocation has the others too and is no launch
// Error{usage} if a value is no number in its range, or torchrun's and Open MPI's disagree.
using Environment = std::function<const char*(const char* name)>;  // null: not set
Launch detect_launch(const Environment&);
Launch detect_launch();  // of this process

// The first host of a Slurm node list: "node01" of "node[01-03,7],other2".
std::string first_host(const std::string& node_list);

}  // namespace kla
