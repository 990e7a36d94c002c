// Signals: the first SIGINT, SIGTERM, SIGUSR1 or SIGHUP asks the run to finish its step, save and
// exit 75; the second ends the process at once. SIGPIPE is ignored.
#pragma once

namespace kla {

class SignalGuard {  // installs the handlers for its lifetime
 public:
  SignalGuard();
  ~SignalGuard();
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;
};

bool stop_requested();
const char* stop_signal_name();  // "SIGTERM"; "" if none came

}  // namespace kla
