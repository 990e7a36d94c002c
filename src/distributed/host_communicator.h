// Collectives over the channel, for tensors that the host can read. Sums are taken in a binary tree
// over the ranks, so their bits depend on nothing but the values and the number of ranks; a device
// with memory of its own is staged through the host.
#pragma once

#include <functional>

#include "distributed/communicator.h"

namespace kla {

class HostCommunicator final : public Communicator {
 public:
  HostCommunicator(Channel& channel, DeviceServices& services)
      : Communicator(channel), services_(services) {}

  void reduce_scatter(View all) override;
  void all_gather(View all) override;
  void broadcast(View all) override;

 private:
  void on_host(View view, const std::function<void(View)>& work);
  void reduce_scatter_on_host(View all);
  void all_gather_on_host(View all);
  template <class T>
  void sum_parts(int64_t count);  // of parts_, into its first

  DeviceServices& services_;
  std::vector<std::byte> parts_, staging_;
};

// Adds `from` to `to`, element by element: f32 or f64, in host memory.
void add(const Context&, View to, View from);

}  // namespace kla
