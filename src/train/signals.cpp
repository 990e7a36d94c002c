#include "train/signals.h"

#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstddef>

namespace kla {
namespace {

constexpr std::array<int, 4> kSignals = {SIGINT, SIGTERM, SIGUSR1, SIGHUP};
std::atomic<int> stop_signal{0};
std::atomic<bool> stop_told{false}, announced{true};
std::array<struct sigaction, kSignals.size() + 1> previous;

// The handler has a stack of its own: oneDNN's generated matrix kernels use the stack pointer for
// other things, and a handler on top of it would write into the heap.
alignas(16) std::array<std::byte, 1 << 16> handler_stack;
stack_t previous_stack;

// Only async-signal-safe calls in here.
extern "C" void on_signal(int number) {
  if (stop_signal.exchange(number) != 0) ::_exit(128 + number);
  if (!announced) return;
  static const char text[] =
      "\nstopping: finishing this step, then saving (once more to stop at once, without saving)\n";
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, text, sizeof(text) - 1);
}

}  // namespace

SignalGuard::SignalGuard(bool announce) {
  stop_signal = 0;
  stop_told = false;
  announced = announce;
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  stack_t stack{};
  stack.ss_sp = handler_stack.data();
  stack.ss_size = handler_stack.size();
  ::sigaltstack(&stack, &previous_stack);
  action.sa_flags = SA_RESTART | SA_ONSTACK;
  for (size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &action, &previous[i]);
  action.sa_handler = SIG_IGN;
  ::sigaction(SIGPIPE, &action, &previous.back());
}

SignalGuard::~SignalGuard() {
  for (size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &previous[i], nullptr);
  ::sigaction(SIGPIPE, &previous.back(), nullptr);
  ::sigaltstack(&previous_stack, nullptr);
}

bool stop_requested() {
  return stop_signal.load(std::memory_order_relaxed) != 0 || stop_told;
}

void request_stop() {
  stop_told = true;
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
