// Communicator: what the ranks of a run do together. Tensors are combined where the device has
// them (host memory here, NCCL in nccl/); small things and host memory travel over the channel.
// Every rank calls the same functions in the same order. Each call waits for the others, at most as
// long as the channel's time-out, and throws as Channel::exchange() does.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/context.h"
#include "core/device.h"
#include "distributed/channel.h"

namespace kla {

class Communicator {
 public:
  explicit Communicator(Channel& channel) : channel_(channel) {}
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  static Communicator& alone();  // of one rank

  int rank() const { return channel_.rank(); }
  int size() const { return channel_.size(); }
  bool root() const { return rank() == 0; }  // the rank that writes files and talks to people
  Channel& channel() { return channel_; }

  // On dense views in device memory that have the same size on every rank; `all` is cut into size()
  // equal parts, part r belonging to rank r.
  virtual void reduce_scatter(View all) = 0;  // own part = sum over ranks; the others: undefined
  virtual void all_gather(View all) = 0;      // every part as its owner has it
  virtual void broadcast(View all) = 0;       // as the root has it

  // Small things: of all ranks, in order, on every rank. Numbers: as many of each rank.
  std::vector<std::string> gather(const std::string& mine, const char* what);
  template <class T>
  std::vector<T> gather(const std::vector<T>& mine, const char* what) {
    std::vector<T> all(mine.size() * static_cast<size_t>(size()));
    gather_bytes(mine.data(), all.data(), static_cast<int64_t>(mine.size() * sizeof(T)), what);
    return all;
  }
  std::string from_root(const std::string& text, const char* what);  // which waits for nobody
  bool any(bool mine, const char* what);
  void barrier(const char* what) { any(false, what); }

  // Host memory: `all` exists on the root only and holds the parts of all ranks in order.
  void collect(View mine, View all, const char* what);
  void distribute(View all, View mine, const char* what);

 protected:
  View part_of(View all, int rank) const;

 private:
  void gather_bytes(const void* mine, void* all, int64_t bytes, const char* what);

  Channel& channel_;
};

// What must be the same on every rank, the program's version first: Error{code} naming the first
// rank that differs from rank 0, and in what.
struct Fact {
  std::string name, value;
  Exit code = Exit::usage;  // of a difference
};
void require_same(Communicator&, const std::vector<Fact>&);

// For the tensors of a device: over the channel for host memory, NCCL for GPUs. Error{usage} if
// this build or machine lacks what that needs.
std::unique_ptr<Communicator> make_communicator(Channel&, Device);

// nccl/ registers itself before main() where it is built in.
using MakeCommunicator = std::unique_ptr<Communicator> (*)(Channel&, DeviceServices&);
bool register_gpu_communicator(MakeCommunicator);

}  // namespace kla
