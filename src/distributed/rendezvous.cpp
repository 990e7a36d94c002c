#include "distributed/rendezvous.h"

#include <array>
#include <cstring>

#include "core/error.h"
#include "core/log.h"

namespace kla {
namespace {

constexpr std::array<char, 8> kGreeting = {'k', 'l', 'a', 'r', 'a', 'n', 'k', '1'};
enum class Line : int32_t { data, signals };

// The first bytes on every connection.
struct Hello {
  std::array<char, 8> greeting = kGreeting;
  int32_t rank = 0, size = 0;
  Line line = Line::data;
  int32_t port = 0;  // where this rank listens
};

struct Address {
  std::array<char, 64> host{};  // numeric
  int32_t port = 0;
};

class Meeting {
 public:
  Meeting(const Launch& launch, double timeout_s)
      : launch_(launch),
        deadline_(Clock::now() + std::chrono::milliseconds(static_cast<int64_t>(timeout_s * 1e3))),
        timeout_s_(timeout_s),
        listener_(Socket::listen(launch.rank == 0 ? launch.port : 0)) {
    mesh_.data.resize(static_cast<size_t>(launch.size));
    mesh_.signals.resize(static_cast<size_t>(launch.size));
    addresses_.resize(static_cast<size_t>(launch.size));
  }

  Mesh run() {
    const int rank = launch_.rank, size = launch_.size;
    if (rank == 0) {
      welcome(Line::data, 1);
      for (int peer = 1; peer < size; ++peer) tell_addresses(peer);
      welcome(Line::signals, 1);
    } else {
      connect(0, Line::data, launch_.address, launch_.port);
      learn_addresses();
      connect(0, Line::signals, launch_.address, launch_.port);
      for (int peer = 1; peer < rank; ++peer) {
        const Address& address = addresses_[static_cast<size_t>(peer)];
        connect(peer, Line::data, address.host.data(), address.port);
        connect(peer, Line::signals, address.host.data(), address.port);
      }
      welcome(Line::data, rank + 1);
      welcome(Line::signals, rank + 1);
    }
    return std::move(mesh_);
  }

 private:
  std::vector<Socket>& sockets(Line line) {
    return line == Line::data ? mesh_.data : mesh_.signals;
  }

  void connect(int peer, Line line, const std::string& host, int port) {
    const Hello hello{kGreeting, launch_.rank, launch_.size, line, listener_.port()};
    Socket socket = Socket::connect(host, port, deadline_);
    if (!socket.send_all(&hello, sizeof(hello), deadline_))
      throw Error(Exit::distributed, "rank " + std::to_string(peer) + " hung up");
    sockets(line)[static_cast<size_t>(peer)] = std::move(socket);
  }

  // Accepts connections until every rank from `first` on has one for `line`. One for the other line
  // may come in between.
  void welcome(Line line, int first) {
    auto reminder = Clock::now() + std::chrono::seconds(30);
    for (std::string missing; !(missing = missing_on(line, first)).empty();) {
      if (Clock::now() > deadline_)
        throw Error(Exit::distributed,
                    "rank " + missing + " did not arrive within " +
                        std::to_string(static_cast<int64_t>(timeout_s_)) + " s",
                    "look at its output; dist.init_timeout_s sets how long the others wait");
      if (Clock::now() > reminder) {
        log::warning("waiting for rank " + missing);
        reminder += std::chrono::seconds(30);
      }
      if (auto socket = listener_.accept(std::chrono::milliseconds(100)))
        introduce(std::move(*socket), first);
    }
  }

  // A stranger is turned away; it may be a port scanner.
  void introduce(Socket socket, int first) {
    Hello hello;
    const Deadline soon = Clock::now() + std::chrono::seconds(5);
    if (!socket.receive_all(&hello, sizeof(hello), soon) || hello.greeting != kGreeting) return;
    if (hello.size != launch_.size)
      throw Error(Exit::usage,
                  "rank " + std::to_string(hello.rank) + " counts " + std::to_string(hello.size) +
                      " ranks, this one " + std::to_string(launch_.size),
                  "set the same WORLD_SIZE everywhere");
    if (hello.rank < first || hello.rank >= launch_.size) return;
    Socket& place = sockets(hello.line)[static_cast<size_t>(hello.rank)];
    if (place.is_open())
      throw Error(Exit::usage, "two processes are rank " + std::to_string(hello.rank),
                  "give every process another RANK, from 0 to WORLD_SIZE - 1");
    Address& address = addresses_[static_cast<size_t>(hello.rank)];
    std::strncpy(address.host.data(), socket.peer().c_str(), address.host.size() - 1);
    address.port = hello.port;
    place = std::move(socket);
  }

  std::string missing_on(Line line, int first) {
    std::string names;
    for (int peer = first; peer < launch_.size; ++peer)
      if (!sockets(line)[static_cast<size_t>(peer)].is_open())
        names += (names.empty() ? "" : ", ") + std::to_string(peer);
    return names;
  }

  int64_t table_bytes() const { return static_cast<int64_t>(addresses_.size() * sizeof(Address)); }

  void tell_addresses(int peer) {
    const Socket& socket = mesh_.data[static_cast<size_t>(peer)];
    if (!socket.send_all(addresses_.data(), table_bytes(), deadline_))
      throw Error(Exit::distributed, "rank " + std::to_string(peer) + " hung up");
  }

  void learn_addresses() {
    if (!mesh_.data[0].receive_all(addresses_.data(), table_bytes(), deadline_))
      throw Error(Exit::distributed, "rank 0 hung up, or not every rank arrived",
                  "look at the output of rank 0");
  }

  const Launch& launch_;
  Deadline deadline_;
  double timeout_s_;
  Socket listener_;
  Mesh mesh_;
  std::vector<Address> addresses_;
};

}  // namespace

Mesh meet(const Launch& launch, double timeout_s) {
  return Meeting(launch, timeout_s).run();
}

}  // namespace kla
