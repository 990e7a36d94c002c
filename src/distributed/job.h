// Job: the work of one rank, and how all of them end when one of them fails.
#pragma once

#include <functional>
#include <string>

#include "distributed/channel.h"

namespace kla {

// Returns the exit code of `work`. An error ends every rank with its exit code: those that wait for
// this one hear of it. `report` is called on one rank only, with "rank 2 on node7: " or nothing for
// rank 0 and for an error that all ranks ran into, and returns the exit code.
using Report = std::function<int(const Error&, const std::string& who)>;
int run_job(Channel&, const std::function<int()>& work, const Report& report);

}  // namespace kla
