#include "train/signals.h"

#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>

namespace kla {
namespace {

constexpr std::array<int, 4> kSignals = {SIGINT, SIGTERM, SIGUSR1, SIGHUP};
std::atomic<int> stop_signal{0};
std::array<struct sigaction, kSignals.size() + 1> previous;

// Only async-signal-safe calls in here.
extern "C" void on_signal(int number) {
  if (stop_signal.exchange(number) != 0) ::_exit(128 + number);
  static const char text[] =
      "\nstopping: finishing this step, then saving (once more to stop at once, without saving)\n";
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, text, sizeof(text) - 1);
}

}  // namespace

SignalGuard::SignalGuard() {
  stop_signal = 0;
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  for (size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &action, &previous[i]);
  action.sa_handler = SIG_IGN;
  ::sigaction(SIGPIPE, &action, &previous.back());
}

SignalGuard::~SignalGuard() {
  for (size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &previous[i], nullptr);
  ::sigaction(SIGPIPE, &previous.back(), nullptr);
}

bool stop_requested() {
  return stop_signal.load(std::memory_order_relaxed) != 0;
}

const char* stop_signal_name() {
  switch (stop_signal.load()) {
    case SIGINT:
      return "SIGINT";
    case SIGTERM:
      return "SIGTERM";
    case SIGUSR1:
      return "SIGUSR1";
    case SIGHUP:
      return "SIGHUP";
    default:
      return "";
  }
}

}  // namespace kla
