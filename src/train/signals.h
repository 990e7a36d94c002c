// Signals: the first SIGINT, SIGTERM, SIGUSR1 or SIGHUP asks the run to finish its step, save and
// exit 75; the second ends the process at once. SIGPIPE is ignored.
#pragma once

namespace kla {

class SignalGuard {  // installs the handlers for its lifetime
 public:
  // `announce`: say on the terminal that the run will stop; one rank of several does.
  explicit SignalGuard(bool announce = true);
  ~SignalGuard();
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;
};

bool stop_requested();
void request_stop();             // as if a signal had come: another rank got one
const char* stop_signal_name();  // "SIGTERM"; "" if none came here

}  // namespace kla
