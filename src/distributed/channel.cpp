#include "distributed/channel.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>

namespace kla {
namespace {

constexpr double kAnswerSeconds = 2;  // a rank that waits answers within milliseconds

std::string in_seconds(double seconds) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g s", seconds);
  return text;
}

OpenChannel& mpi_channel() {
  static OpenChannel open = nullptr;
  return open;
}

// One rank, or one of several that are only imagined: nobody to talk to.
class Alone final : public Channel {
 public:
  Alone(int rank, int size) : Channel(rank, size) {}
  void abort(Exit, bool) override {}

 protected:
  void drop() noexcept override {}
  void start(const std::vector<Send>&, const std::vector<Receive>&) override {
    KLA_CHECK(size() == 1, "a plan exchanges nothing");
  }
  bool advance() override { return true; }
  void pause() override {}
  void tell_all(Signal) noexcept override {}
  Signal hear(int) override { return kSilent; }
};

}  // namespace

LostRank::LostRank(const std::string& message, bool speaker)
    : Error(Exit::distributed, message,
            "the last checkpoint is intact: look at that rank's machine, then start again"),
      speaker_(speaker) {}

PeerFailed::PeerFailed(int rank, Exit code)
    : Error(code, "rank " + std::to_string(rank) + " has failed") {}

Channel::Channel(int rank, int size)
    : rank_(rank), size_(size), heard_(static_cast<size_t>(size), kSilent) {}

std::string Channel::name_of_rank(int rank) const {
  const std::string name = "rank " + std::to_string(rank);
  return hosts_.empty() ? name : name + " on " + hosts_[static_cast<size_t>(rank)];
}

void Channel::exchange(const std::vector<Send>& sends, const std::vector<Receive>& receives,
                       const char* what) {
  require_all_well(what);  // a rank that failed during the exchange before
  const auto since = Clock::now();
  try {
    start(sends, receives);
    while (!advance()) {
      watch(since, what);
      pause();
    }
  } catch (...) {
    drop();  // the memory of the messages goes away
    throw;
  }
}

void Channel::watch(Clock::time_point since, const char* what) {
  listen();
  require_all_well(what);
  if (seconds_since(since) > timeout_) call_the_roll(what);
}

void Channel::listen() {
  for (int peer = 0; peer < size_; ++peer) {
    Signal& last = heard_[static_cast<size_t>(peer)];
    if (peer == rank_ || last > kPresent) continue;  // who has failed stays failed
    for (Signal next; (next = hear(peer)) != kSilent;) {
      last = next;
      if (next == kGone) break;
    }
  }
}

void Channel::require_all_well(const char* what) {
  bool alarm = false;
  for (int peer = 0; peer < size_; ++peer) {
    const Signal signal = heard_[static_cast<size_t>(peer)];
    if (signal > kPresent && signal != kLost) throw PeerFailed(peer, static_cast<Exit>(signal));
    alarm |= signal != kSilent;
  }
  if (alarm) call_the_roll(what);
}

// Every rank that waits in an exchange hears the call and answers it by calling itself. Whoever is
// silent is frozen, or kept the others waiting.
void Channel::call_the_roll(const char* what) {
  tell_all(kPresent);
  wait_for_answers(kAnswerSeconds);
  std::vector<int> gone, silent;
  bool others_know = false;
  for (int peer = 0; peer < size_; ++peer) {
    const Signal signal = heard_[static_cast<size_t>(peer)];
    if (peer == rank_) continue;
    if (signal == kGone) gone.push_back(peer);
    if (signal == kSilent) silent.push_back(peer);
    others_know |= signal == kLost;
  }
  if (!gone.empty()) lose(gone, std::string("lost its connection during ") + what);
  const std::string late = std::string(what) + " within " + in_seconds(timeout_);
  if (!silent.empty()) lose(silent, "did not take part in " + late);
  // All are there: the one that was missing may be this one, awake again.
  throw LostRank("every rank answers, but not all took part in " + late,
                 rank_ == 0 && !others_know);
}

// Until every rank has said something, or has gone.
void Channel::wait_for_answers(double seconds) {
  const auto start = Clock::now();
  auto all_answered = [&] {
    for (int peer = 0; peer < size_; ++peer)
      if (peer != rank_ && heard_[static_cast<size_t>(peer)] == kSilent) return false;
    return true;
  };
  for (listen(); !all_answered() && seconds_since(start) < seconds; listen()) {
    advance();  // also notices the end of a connection
    pause();
  }
}

void Channel::lose(const std::vector<int>& missing, const std::string& why) const {
  int lowest = 0;
  std::string names;
  for (int peer : missing) {
    if (peer == lowest) ++lowest;
    names += (names.empty() ? "" : ", ") + name_of_rank(peer);
  }
  throw LostRank(names + " " + why, lowest == rank_);
}

Channel::Verdict Channel::announce(const Error& error) {
  if (const auto* lost = dynamic_cast<const LostRank*>(&error)) {
    tell_all(kLost);
    return {lost->speaker(), false};
  }
  if (dynamic_cast<const PeerFailed*>(&error)) {
    tell_all(kPresent);
    return {false, false};
  }
  tell_all(static_cast<Signal>(error.code()));
  wait_for_answers(kAnswerSeconds);
  Verdict verdict{true, true};
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    const bool failed = heard_[static_cast<size_t>(peer)] > kPresent;
    verdict.unanimous &= failed;
    if (failed && peer < rank_) verdict.speaker = false;
  }
  return verdict;
}

namespace {

std::unique_ptr<Channel> open_by_launcher(const Launch& launch, double timeout_s) {
  if (launch.launcher != "torchrun" && mpi_channel()) return mpi_channel()(launch, timeout_s);
  if (!launch.address.empty()) return open_tcp_channel(launch, timeout_s);
  throw Error(Exit::usage,
              launch.launcher + " started " + std::to_string(launch.size) +
                  " ranks, but this build has no MPI",
              "build with KLA_MPI=ON, or set MASTER_ADDR and MASTER_PORT to use TCP");
}

// What every rank sends to all.
template <class T>
std::vector<T> all_of(Channel& channel, const T& mine, const char* what) {
  std::vector<T> all(static_cast<size_t>(channel.size()), mine);
  std::vector<Channel::Send> sends;
  std::vector<Channel::Receive> receives;
  for (int peer = 0; peer < channel.size(); ++peer) {
    if (peer == channel.rank()) continue;
    sends.push_back({peer, &mine, sizeof(T)});
    receives.push_back({peer, &all[static_cast<size_t>(peer)], sizeof(T)});
  }
  channel.exchange(sends, receives, what);
  return all;
}

// The host of every rank, for messages. Whoever comes back knows that all others have all hosts:
// nobody can fail, and say so, while another is still without them.
void introduce(Channel& channel) {
  constexpr const char* kWhat = "the introduction of the ranks";
  std::array<char, 64> mine{};
  ::gethostname(mine.data(), mine.size() - 1);
  std::vector<std::string> hosts;
  for (const auto& name : all_of(channel, mine, kWhat)) hosts.emplace_back(name.data());
  channel.set_hosts(std::move(hosts));
  try {
    all_of(channel, char{1}, kWhat);
  } catch (const PeerFailed&) {  // the next exchange says so, where errors are announced
  }
}

}  // namespace

std::unique_ptr<Channel> plan_channel(const Launch& launch) {
  return std::make_unique<Alone>(launch.rank, launch.size);
}

std::unique_ptr<Channel> open_channel(const Launch& launch, double timeout_s) {
  if (launch.size == 1) return plan_channel(launch);
  std::unique_ptr<Channel> channel = open_by_launcher(launch, timeout_s);
  channel->set_timeout(timeout_s);
  introduce(*channel);
  return channel;
}

bool register_mpi_channel(OpenChannel open) {
  mpi_channel() = open;
  return true;
}

}  // namespace kla
