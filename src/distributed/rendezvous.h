// Rendezvous: how ranks that know one address become a mesh of TCP connections. Every rank
// introduces itself to rank 0, which tells all of them where the others listen.
#pragma once

#include <vector>

#include "distributed/launch.h"
#include "distributed/socket.h"

namespace kla {

// Two connections for each other rank, so that a signal never waits behind data. Those of the rank
// itself are closed.
struct Mesh {
  std::vector<Socket> data, signals;
};

// Error{distributed} naming the ranks that did not arrive within `timeout_s`, Error{usage} if ranks
// disagree on how many they are.
Mesh meet(const Launch&, double timeout_s);

}  // namespace kla
