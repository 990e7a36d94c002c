#include "commands/sweep_runs.h"

#include <signal.h>
#include <sys/file.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <map>
#include <set>
#include <thread>

#include "commands/setup.h"
#include "core/child.h"
#include "core/error.h"
#include "core/file.h"
#include "core/log.h"
#include "core/thread_pool.h"
#include "train/progress.h"
#include "train/signals.h"
#include "train/trainer.h"

namespace kla {
namespace {

using report::RunState;

constexpr auto kPause = std::chrono::milliseconds(20);
constexpr int kStopped = static_cast<int>(Exit::stopped);

// A run of a sweep that was killed may still be saving: its lock says so.
bool in_use(const std::string& run_directory) {
  const std::string path = run_directory + "/lock";
  if (!file_exists(path)) return false;
  const File lock = File::open_read(path);
  return ::flock(lock.descriptor(), LOCK_EX | LOCK_NB) != 0;  // given back on return
}

// The children of a sweep, from the first start to the last end.
class Scheduler {
 public:
  Scheduler(const Sweep& sweep, int jobs, std::deque<size_t> waiting)
      : sweep_(sweep),
        jobs_(static_cast<size_t>(jobs)),
        threads_(std::max(1, available_cores() / jobs)),
        all_(waiting.size()),
        waiting_(std::move(waiting)) {}

  void run() {
    while (!running_.empty() || (!waiting_.empty() && !stop_requested())) {
      if (!stop_requested()) start_what_fits();
      collect();
      if (stop_requested()) forward();
      show_progress();
      std::this_thread::sleep_for(kPause);
    }
    log::status_line("");
  }
  const std::map<size_t, int>& exit_codes() const { return exit_codes_; }

 private:
  const SweepRun& at(size_t i) const { return sweep_.runs[i]; }
  const std::string& directory(size_t i) const { return at(i).loaded.config.run.dir; }

  void start_what_fits() {
    for (size_t tries = waiting_.size(); tries > 0 && running_.size() < jobs_; --tries) {
      const size_t i = waiting_.front();
      waiting_.pop_front();
      if (in_use(directory(i))) {
        if (waited_for_.insert(i).second) log::info("wait   " + at(i).name + " is still in use");
        waiting_.push_back(i);
        continue;
      }
      const bool begun = file_exists(directory(i) + "/config.yaml");
      running_.emplace(i, Child(train_words(sweep_, at(i), threads_),
                                sweep_.config.dir + "/log/" + at(i).name + ".log"));
      log::info((begun ? "resume " : "start  ") + at(i).name);
    }
  }

  void collect() {
    for (auto child = running_.begin(); child != running_.end();) {
      const std::optional<int> code = child->second.poll();
      if (!code) {
        ++child;
        continue;
      }
      report_end(child->first, *code);
      child = running_.erase(child);
    }
  }

  void report_end(size_t i, int code) {
    const RunStanding now = standing_of(at(i));
    const bool stopped = code == kStopped || (stop_requested() && code > 128);
    exit_codes_[i] = stopped ? kStopped : code;
    log::status_line("");
    if (code == 0 || stopped) {
      log::info((stopped ? "stop   " : "end    ") + at(i).name + "  " + describe(now));
      return;
    }
    std::string reason = now.why;
    if (reason.empty())
      reason = code > 128 ? "ended by signal " + std::to_string(code - 128)
                          : "exit code " + std::to_string(code);
    log::warning(at(i).name + " " + (now.state == RunState::diverged ? "diverged" : "failed") +
                 ": " + reason + "; its output is in " + sweep_.config.dir + "/log/" + at(i).name +
                 ".log");
  }

  void forward() {
    if (forwarded_) return;
    forwarded_ = true;
    for (const auto& [unused, child] : running_) child.send(SIGTERM);
  }

  void show_progress() {
    if (!log::fancy_terminal()) return;
    const auto ended = static_cast<int64_t>(exit_codes_.size());
    std::string names;
    for (const auto& [i, unused] : running_) names += " " + at(i).name;
    log::status_line(progress_bar(ended, static_cast<int64_t>(all_)) + " " + std::to_string(ended) +
                     "/" + std::to_string(all_) + names);
  }

  const Sweep& sweep_;
  size_t jobs_;
  int threads_;
  size_t all_;
  std::deque<size_t> waiting_;
  std::map<size_t, Child> running_;  // by the index of the run
  std::map<size_t, int> exit_codes_;
  std::set<size_t> waited_for_;
  bool forwarded_ = false;
};

}  // namespace

std::string describe(const RunStanding& standing) {
  std::string text = name_of(standing.state);
  if (standing.state != RunState::fresh && standing.state != RunState::finished)
    text += ", step " + std::to_string(standing.step) + " of " + std::to_string(standing.steps);
  return text;
}

RunStanding standing_of(const SweepRun& run) {
  const std::string& directory = run.loaded.config.run.dir;
  RunStanding standing;
  standing.steps = make_train_plan(run.loaded.config).steps;
  if (!file_exists(directory + "/config.yaml")) return standing;
  const std::string keys = differing_keys(load_run_config(directory).config, run.loaded.config);
  if (!keys.empty())
    throw Error(Exit::usage, "'" + directory + "' was started with another config:" + keys,
                "give the sweep another name, or remove that directory");
  const report::KeyValues status = report::read_flat_json(directory + "/status.json");
  standing.state = status.empty() ? RunState::unfinished : report::state_of(status);
  standing.step = std::strtoll(report::value_of(status, "step").c_str(), nullptr, 10);
  if (standing.state == RunState::failed || standing.state == RunState::diverged)
    standing.why = report::value_of(status, "why");
  return standing;
}

std::vector<RunStanding> standings_of(const Sweep& sweep) {
  std::vector<RunStanding> standings;
  for (const SweepRun& run : sweep.runs) standings.push_back(standing_of(run));
  return standings;
}

std::vector<std::string> train_words(const Sweep& sweep, const SweepRun& run, int threads) {
  std::vector<std::string> words = {"train", sweep.config.base};
  words.insert(words.end(), run.overrides.begin(), run.overrides.end());
  if (threads > 0) words.push_back("device.threads=" + std::to_string(threads));
  return words;
}

int execute(const Sweep& sweep, int jobs) {
  const std::vector<RunStanding> before = standings_of(sweep);
  std::deque<size_t> waiting;
  for (size_t i = 0; i < sweep.runs.size(); ++i)
    if (!before[i].done()) waiting.push_back(i);
  log::info("sweep  " + sweep.config.name + ": " + std::to_string(sweep.runs.size()) + " runs, " +
            std::to_string(sweep.runs.size() - waiting.size()) + " of them done");
  make_directories(sweep.config.dir + "/log");
  Scheduler scheduler(sweep, jobs, waiting);
  scheduler.run();
  if (stop_requested()) return kStopped;
  for (size_t i = 0; i < sweep.runs.size(); ++i) {
    const auto ended = scheduler.exit_codes().find(i);
    if (ended != scheduler.exit_codes().end() && ended->second != 0) return ended->second;
    if (before[i].state == RunState::diverged) return static_cast<int>(Exit::numerical);
  }
  return static_cast<int>(Exit::ok);
}

}  // namespace kla
