// Channel: how the ranks of a run exchange bytes. Nothing here waits without a deadline: a rank
// that does not take part in time, or whose connection breaks, ends the wait with a LostRank that
// names it. Implementations: alone (one rank), mpi/, and TCP (tcp_channel.cpp).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/error.h"
#include "distributed/launch.h"

namespace kla {

// A rank is frozen, dead, or did not come in time. Every live rank throws it; one of them speaks.
class LostRank : public Error {
 public:
  LostRank(const std::string& message, bool speaker);
  bool speaker() const { return speaker_; }  // the lowest of the live ranks

 private:
  bool speaker_;
};

// Another rank has failed by an error of its own, and says what is wrong itself.
class PeerFailed : public Error {
 public:
  PeerFailed(int rank, Exit code);
};

class Channel {
 public:
  struct Send {
    int to;
    const void* data;
    int64_t bytes;
  };
  struct Receive {
    int from;
    void* data;
    int64_t bytes;
  };

  Channel(int rank, int size);
  virtual ~Channel() = default;
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }

  // Sends and receives all of it; the other ranks call it with what matches. Messages between two
  // ranks keep their order. `what` names it in the error. LostRank, PeerFailed.
  void exchange(const std::vector<Send>&, const std::vector<Receive>&, const char* what);

  // For those who wait for something else than a message, such as a GPU: throws as exchange() does
  // once the others fail or `since` is too long ago.
  void watch(Clock::time_point since, const char* what);

  // How long exchange() waits for the others; see Patience.
  void set_timeout(double seconds) { timeout_ = seconds; }
  double timeout() const { return timeout_; }
  // "rank 3 on node7"
  std::string name_of_rank(int rank) const;
  void set_hosts(std::vector<std::string> hosts) { hosts_ = std::move(hosts); }

  // After an error: tells the others, and waits a moment for their answers. An error that every
  // rank ran into is reported by the lowest one.
  struct Verdict {
    bool speaker;    // this rank is the one to report its error
    bool unanimous;  // every rank has failed: the job ends by itself
  };
  Verdict announce(const Error&);
  // Ends the ranks that still run. Where the launcher can do it, this does not return; a rank that
  // is not the speaker leaves it the time to speak.
  virtual void abort(Exit, bool speaker) = 0;

 protected:
  // What a rank says about itself outside of exchanges: an exit code it fails with, or kPresent to
  // answer the roll. A lost connection is known by itself.
  using Signal = int32_t;
  static constexpr Signal kSilent = -1, kGone = -2, kPresent = 0;
  static constexpr Signal kLost = static_cast<Signal>(Exit::distributed);  // another rank, that is

  virtual void start(const std::vector<Send>&, const std::vector<Receive>&) = 0;
  virtual bool advance() = 0;                  // makes progress; true once all is exchanged
  virtual void drop() noexcept = 0;            // forgets what is not exchanged
  virtual void pause() = 0;                    // a moment without work: at most a millisecond
  virtual void tell_all(Signal) noexcept = 0;  // does not wait
  virtual Signal hear(int rank) = 0;           // the next signal of a rank, or kSilent, or kGone

 private:
  void listen();
  void require_all_well(const char* what);
  void wait_for_answers(double seconds);
  [[noreturn]] void call_the_roll(const char* what);
  [[noreturn]] void lose(const std::vector<int>& missing, const std::string& why) const;

  int rank_, size_;
  double timeout_ = 300;
  std::vector<Signal> heard_;
  std::vector<std::string> hosts_;
};

// Another time-out for a scope: others wait longer while rank 0 writes a checkpoint.
class Patience {
 public:
  Patience(Channel& channel, double seconds) : channel_(channel), before_(channel.timeout()) {
    channel.set_timeout(seconds);
  }
  ~Patience() { channel_.set_timeout(before_); }
  Patience(const Patience&) = delete;
  Patience& operator=(const Patience&) = delete;

 private:
  Channel& channel_;
  double before_;
};

// The channel of a launch: MPI where the program has it and mpirun or srun started it, otherwise
// TCP to the launch's address. Waits up to `timeout_s` for the other ranks. Error{usage,
// distributed}.
std::unique_ptr<Channel> open_channel(const Launch&, double timeout_s);
// Knows rank and size and exchanges nothing: for the memory plan of a run of several ranks.
std::unique_ptr<Channel> plan_channel(const Launch&);
std::unique_ptr<Channel> open_tcp_channel(const Launch&, double timeout_s);

// mpi/ registers itself before main() where it is built in.
using OpenChannel = std::unique_ptr<Channel> (*)(const Launch&, double timeout_s);
bool register_mpi_channel(OpenChannel);

}  // namespace kla
