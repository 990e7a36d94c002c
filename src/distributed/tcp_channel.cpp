// Messages between ranks over TCP, for ranks started with torchrun's variables.
#include <poll.h>

#include <algorithm>
#include <deque>

#include "distributed/channel.h"
#include "distributed/rendezvous.h"

namespace kla {
namespace {

class TcpChannel final : public Channel {
 public:
  TcpChannel(const Launch& launch, double timeout_s)
      : Channel(launch.rank, launch.size),
        mesh_(meet(launch, timeout_s)),
        peers_(static_cast<size_t>(launch.size)) {}

  void abort(Exit, bool) override {}  // the others have been told, or see our connections end

 protected:
  void start(const std::vector<Send>& sends, const std::vector<Receive>& receives) override {
    for (const Send& s : sends)
      if (s.bytes > 0)
        peer(s.to).sends.push_back({static_cast<char*>(const_cast<void*>(s.data)), s.bytes});
    for (const Receive& r : receives)
      if (r.bytes > 0) peer(r.from).receives.push_back({static_cast<char*>(r.data), r.bytes});
  }

  bool advance() override {
    bool all_done = true;
    for (int i = 0; i < size(); ++i) {
      if (i == rank()) continue;
      const Socket& socket = mesh_.data[static_cast<size_t>(i)];
      Peer& p = peer(i);
      p.gone |= !drain(p.sends, [&](Part& part) { return socket.send_some(part.data, part.left); });
      p.gone |=
          !drain(p.receives, [&](Part& part) { return socket.receive_some(part.data, part.left); });
      all_done &= p.sends.empty() && p.receives.empty();
    }
    return all_done;
  }

  void drop() noexcept override {
    for (Peer& p : peers_) {
      p.sends.clear();
      p.receives.clear();
    }
  }

  void pause() override {
    std::vector<pollfd> waiting;
    for (int i = 0; i < size(); ++i) {
      if (i == rank() || peer(i).gone) continue;
      const int events =
          (peer(i).receives.empty() ? 0 : POLLIN) | (peer(i).sends.empty() ? 0 : POLLOUT);
      waiting.push_back(
          {mesh_.data[static_cast<size_t>(i)].descriptor(), static_cast<short>(events), 0});
    }
    ::poll(waiting.data(), waiting.size(), 1);
  }

  // Eight bytes at most ever wait in a connection, so they go at once or its end is lost anyway.
  void tell_all(Signal signal) noexcept override {
    for (int i = 0; i < size(); ++i)
      if (i != rank()) mesh_.signals[static_cast<size_t>(i)].send_some(&signal, sizeof(signal));
  }

  Signal hear(int i) override {
    Peer& p = peer(i);
    const Socket& socket = mesh_.signals[static_cast<size_t>(i)];
    if (!p.deaf) {
      const int64_t n = socket.receive_some(reinterpret_cast<char*>(&p.signal) + p.signal_bytes,
                                            static_cast<int64_t>(sizeof(Signal)) - p.signal_bytes);
      p.deaf = n < 0;
      p.signal_bytes += std::max<int64_t>(n, 0);
      if (p.signal_bytes == sizeof(Signal)) {
        p.signal_bytes = 0;
        return p.signal;
      }
    }
    return p.gone ? kGone : kSilent;
  }

 private:
  struct Part {
    char* data;
    int64_t left;
  };
  struct Peer {
    std::deque<Part> sends, receives;
    bool gone = false;  // its data connection has ended while something was due
    bool deaf = false;  // its signal connection has ended
    Signal signal = kSilent;
    int64_t signal_bytes = 0;  // of `signal` received so far
  };
  Peer& peer(int i) { return peers_[static_cast<size_t>(i)]; }

  // False once the connection has ended with parts left.
  template <class Move>
  static bool drain(std::deque<Part>& parts, Move&& move) {
    while (!parts.empty()) {
      const int64_t n = move(parts.front());
      if (n < 0) return false;
      if (n == 0) return true;
      parts.front().data += n;
      parts.front().left -= n;
      if (parts.front().left == 0) parts.pop_front();
    }
    return true;
  }

  Mesh mesh_;
  std::vector<Peer> peers_;
};

}  // namespace

std::unique_ptr<Channel> open_tcp_channel(const Launch& launch, double timeout_s) {
  return std::make_unique<TcpChannel>(launch, timeout_s);
}

}  // namespace kla
