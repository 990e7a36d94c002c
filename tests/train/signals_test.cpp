// Signals, each tried in a child process of its own.
#include "train/signals.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <functional>

namespace kla::testing {
namespace {

// Exit status of a child; 1000 + n when signal n killed it.
int status_of(const std::function<int()>& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (::freopen("/dev/null", "w", stderr) == nullptr) ::_exit(125);
    ::_exit(work());
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

struct Named {
  int number;
  const char* name;
};
constexpr Named kStops[] = {
    {SIGINT, "SIGINT"}, {SIGTERM, "SIGTERM"}, {SIGUSR1, "SIGUSR1"}, {SIGHUP, "SIGHUP"}};

TEST(Signals, TheFirstAsksToStopAndIsNamed) {
  for (const Named& signal : kStops)
    EXPECT_EQ(status_of([&] {
                SignalGuard guard;
                if (stop_requested() || std::strlen(stop_signal_name()) > 0) return 1;
                ::raise(signal.number);
                return stop_requested() && std::strcmp(stop_signal_name(), signal.name) == 0 ? 0
                                                                                             : 2;
              }),
              0)
        << signal.name;
}

TEST(Signals, TheSecondEndsTheProcessAtOnce) {
  for (const Named& signal : kStops)
    EXPECT_EQ(status_of([&] {
                SignalGuard guard;
                ::raise(SIGTERM);
                ::raise(signal.number);
                return 0;
              }),
              128 + signal.number)
        << signal.name;
}

TEST(Signals, ABrokenPipeIsAnErrorOfWrite) {
  EXPECT_EQ(status_of([] {
              SignalGuard guard;
              int ends[2];
              if (::pipe(ends) != 0) return 1;
              ::close(ends[0]);
              return ::write(ends[1], "x", 1) == -1 && errno == EPIPE && !stop_requested() ? 0 : 2;
            }),
            0);
}

TEST(Signals, AfterTheGuardTheOldHandlersAreBack) {
  EXPECT_EQ(status_of([] {
              { SignalGuard guard; }
              ::raise(SIGTERM);
              return 0;
            }),
            1000 + SIGTERM);
}

TEST(Signals, AnInterruptedReadGoesOn) {
  EXPECT_EQ(status_of([] {
              SignalGuard guard;
              int ends[2];
              if (::pipe(ends) != 0) return 1;
              const pid_t parent = ::getpid();
              if (::fork() == 0) {
                ::usleep(20'000);
                ::kill(parent, SIGTERM);
                ::usleep(20'000);
                ::_exit(::write(ends[1], "x", 1) == 1 ? 0 : 1);
              }
              char c = 0;
              return ::read(ends[0], &c, 1) == 1 && stop_requested() ? 0 : 2;
            }),
            0);
}

}  // namespace
}  // namespace kla::testing
