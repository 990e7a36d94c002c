#include "distributed/host_communicator.h"

#include <algorithm>
#include <cstring>

namespace kla {
namespace {

constexpr int64_t kPiece = 1 << 18;  // elements of every rank in flight at a time

template <class T>
void add_elements(T* to, const T* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] += from[i];
}

}  // namespace

// Part by part in pieces: every rank sends each other one its piece of that rank's part, and sums
// the pieces it receives.
void HostCommunicator::reduce_scatter_on_host(View all) {
  KLA_CHECK(all.dtype == DType::f32 || all.dtype == DType::f64, all.describe());
  const int64_t width = size_of(all.dtype), part = all.size() / size();
  parts_.resize(static_cast<size_t>(size() * kPiece * width));
  for (int64_t first = 0; first < part; first += kPiece) {
    const int64_t count = std::min(kPiece, part - first), bytes = count * width;
    std::vector<Channel::Send> sends;
    std::vector<Channel::Receive> receives;
    for (int peer = 0; peer < size(); ++peer) {
      std::byte* place = parts_.data() + peer * bytes;
      const void* theirs = part_of(all, peer).elements(first, count).data;
      if (peer == rank()) {
        std::memcpy(place, theirs, static_cast<size_t>(bytes));
      } else {
        sends.push_back({peer, theirs, bytes});
        receives.push_back({peer, place, bytes});
      }
    }
    channel().exchange(sends, receives, "the sum of the gradients");
    if (all.dtype == DType::f32) {
      sum_parts<float>(count);
    } else {
      sum_parts<double>(count);
    }
    std::memcpy(part_of(all, rank()).elements(first, count).data, parts_.data(),
                static_cast<size_t>(bytes));
  }
}

// ((0 + 1) + (2 + 3)) + ...: the tree that goes on above the one inside a rank (train/).
template <class T>
void HostCommunicator::sum_parts(int64_t count) {
  T* parts = reinterpret_cast<T*>(parts_.data());
  for (int64_t step = 1; step < size(); step *= 2)
    for (int64_t i = 0; i + step < size(); i += 2 * step)
      add_elements(parts + i * count, parts + (i + step) * count, count);
}

void HostCommunicator::all_gather_on_host(View all) {
  const View mine = part_of(all, rank());
  std::vector<Channel::Send> sends;
  std::vector<Channel::Receive> receives;
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) continue;
    const View theirs = part_of(all, peer);
    sends.push_back({peer, mine.data, mine.bytes()});
    receives.push_back({peer, theirs.data, theirs.bytes()});
  }
  channel().exchange(sends, receives, "the exchange of the weights");
}

void HostCommunicator::on_host(View view, const std::function<void(View)>& work) {
  if (size() == 1) return;
  if (services_.host_memory()) return work(view);
  staging_.resize(static_cast<size_t>(view.bytes()));
  services_.download(staging_.data(), view.data, view.bytes());
  View host = view;
  host.data = staging_.data();
  work(host);
  services_.upload(view.data, host.data, view.bytes());
}

void HostCommunicator::reduce_scatter(View all) {
  on_host(all, [&](View host) { reduce_scatter_on_host(host); });
}

void HostCommunicator::all_gather(View all) {
  on_host(all, [&](View host) { all_gather_on_host(host); });
}

void HostCommunicator::broadcast(View all) {
  on_host(all, [&](View host) {
    std::vector<Channel::Send> sends;
    for (int peer = 1; root() && peer < size(); ++peer)
      sends.push_back({peer, host.data, host.bytes()});
    std::vector<Channel::Receive> receives;
    if (!root()) receives.push_back({0, host.data, host.bytes()});
    channel().exchange(sends, receives, "the broadcast of the weights");
  });
}

void add(const Context& context, View to, View from) {
  KLA_CHECK(to.size() == from.size() && to.dtype == from.dtype, to.describe());
  const int64_t tasks = (to.size() + kPiece - 1) / kPiece;
  context.parallel(tasks, [&](int64_t task, int) {
    const int64_t first = task * kPiece, count = std::min(kPiece, to.size() - first);
    if (to.dtype == DType::f32) {
      add_elements(to.as<float>() + first, from.as<float>() + first, count);
    } else {
      add_elements(to.as<double>() + first, from.as<double>() + first, count);
    }
  });
}

}  // namespace kla
