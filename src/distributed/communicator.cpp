#include "distributed/communicator.h"

#include <algorithm>
#include <cstring>
#include <sstream>

#include "distributed/host_communicator.h"

namespace kla {
namespace {

MakeCommunicator& gpu_communicator() {
  static MakeCommunicator make = nullptr;
  return make;
}

}  // namespace

Communicator& Communicator::alone() {
  static const std::unique_ptr<Channel> channel = open_channel(Launch(), 0);
  static HostCommunicator communicator(*channel, services_of(Device::cpu));
  return communicator;
}

View Communicator::part_of(View all, int rank) const {
  KLA_CHECK(all.size() % size() == 0, all.describe());
  const int64_t count = all.size() / size();
  return all.elements(rank * count, count);
}

void Communicator::gather_bytes(const void* mine, void* all, int64_t bytes, const char* what) {
  std::vector<Channel::Send> sends;
  std::vector<Channel::Receive> receives;
  for (int peer = 0; peer < size(); ++peer) {
    char* place = static_cast<char*>(all) + peer * bytes;
    if (peer == rank()) {
      std::copy_n(static_cast<const char*>(mine), bytes, place);
    } else {
      sends.push_back({peer, mine, bytes});
      receives.push_back({peer, place, bytes});
    }
  }
  channel_.exchange(sends, receives, what);
}

std::vector<std::string> Communicator::gather(const std::string& mine, const char* what) {
  const std::vector<size_t> lengths = gather(std::vector<size_t>{mine.size()}, what);
  std::vector<char> padded(*std::max_element(lengths.begin(), lengths.end()));
  std::copy(mine.begin(), mine.end(), padded.begin());
  const std::vector<char> all = gather(padded, what);
  std::vector<std::string> texts;
  for (size_t i = 0; i < lengths.size(); ++i)
    texts.emplace_back(all.data() + i * padded.size(), lengths[i]);
  return texts;
}

std::string Communicator::from_root(const std::string& text, const char* what) {
  std::string result = root() ? text : "";
  int64_t length = static_cast<int64_t>(text.size());
  const auto pass_on = [&](void* data, int64_t bytes) {
    if (!root()) return channel_.exchange({}, {{0, data, bytes}}, what);
    std::vector<Channel::Send> sends;
    for (int peer = 1; peer < size(); ++peer) sends.push_back({peer, data, bytes});
    channel_.exchange(sends, {}, what);
  };
  pass_on(&length, sizeof(length));
  result.resize(static_cast<size_t>(length));
  pass_on(result.data(), length);
  return result;
}

bool Communicator::any(bool mine, const char* what) {
  const std::vector<char> all = gather(std::vector<char>{mine}, what);
  return std::any_of(all.begin(), all.end(), [](char yes) { return yes != 0; });
}

void Communicator::collect(View mine, View all, const char* what) {
  if (!root()) return channel_.exchange({{0, mine.data, mine.bytes()}}, {}, what);
  std::vector<Channel::Receive> receives;
  for (int peer = 1; peer < size(); ++peer) {
    const View part = part_of(all, peer);
    receives.push_back({peer, part.data, part.bytes()});
  }
  std::memcpy(all.data, mine.data, static_cast<size_t>(mine.bytes()));
  channel_.exchange({}, receives, what);
}

void Communicator::distribute(View all, View mine, const char* what) {
  if (!root()) return channel_.exchange({}, {{0, mine.data, mine.bytes()}}, what);
  std::vector<Channel::Send> sends;
  for (int peer = 1; peer < size(); ++peer) {
    const View part = part_of(all, peer);
    sends.push_back({peer, part.data, part.bytes()});
  }
  std::memcpy(mine.data, all.data, static_cast<size_t>(mine.bytes()));
  channel_.exchange(sends, {}, what);
}

void require_same(Communicator& communicator, const std::vector<Fact>& facts) {
  std::string mine;
  for (const Fact& fact : facts) mine += fact.value + '\0';
  const std::vector<std::string> all = communicator.gather(mine, "the comparison of the ranks");
  for (int rank = 1; rank < communicator.size(); ++rank) {
    std::istringstream ours(all[0]), theirs(all[static_cast<size_t>(rank)]);
    for (const Fact& fact : facts) {
      std::string here, there;
      std::getline(ours, here, '\0');
      std::getline(theirs, there, '\0');
      if (here == there) continue;
      throw Error(fact.code,
                  communicator.channel().name_of_rank(rank) + " differs from rank 0: " + fact.name +
                      " is '" + there + "' there, '" + here + "' on rank 0",
                  "start the same program with the same config and data on every rank");
    }
  }
}

std::unique_ptr<Communicator> make_communicator(Channel& channel, Device device) {
  DeviceServices& services = services_of(device);
  if (device != Device::cuda || channel.size() == 1)
    return std::make_unique<HostCommunicator>(channel, services);
  if (!gpu_communicator())
    throw Error(Exit::usage, "several GPUs need NCCL, and this program was built without nccl.h",
                "install NCCL's header and build again, or start one rank");
  return gpu_communicator()(channel, services);
}

bool register_gpu_communicator(MakeCommunicator make) {
  gpu_communicator() = make;
  return true;
}

}  // namespace kla
