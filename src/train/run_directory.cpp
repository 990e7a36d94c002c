#include "train/run_directory.h"

#include <sys/file.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/thread_pool.h"
#include "version.h"

namespace kla {
namespace {

using Json = nlohmann::ordered_json;

std::string timestamp() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

std::string host_name() {
  char name[256] = {};
  return ::gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown";
}

std::string cpu_model() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  return "unknown";
}

std::string operating_system() {
  utsname info{};
  ::uname(&info);
  return std::string(info.sysname) + " " + info.release + " " + info.machine;
}

int64_t memory_bytes() {
  return int64_t{::sysconf(_SC_PHYS_PAGES)} * int64_t{::sysconf(_SC_PAGESIZE)};
}

Json read_json(const std::string& path) {
  if (!file_exists(path)) return Json::object();
  Json value = Json::parse(read_file(path, 1 << 24), nullptr, false);
  return value.is_object() ? value : Json::object();
}

// Whatever bytes a command line or a message holds, the file is JSON.
void write_json(const std::string& path, const Json& value) {
  write_file_atomic(path, value.dump(1, ' ', true, Json::error_handler_t::replace) + "\n");
}

}  // namespace

File lock_directory(const std::string& path, const std::string& what, const std::string& remedy) {
  File lock = File::append(path + "/lock");
  if (::flock(lock.descriptor(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) throw_errno("cannot lock '" + path + "/lock'");
    const Json holder = Json::parse(read_file(path + "/lock", 4096), nullptr, false);
    const std::string who =
        holder.is_object() ? "process " + std::to_string(holder.value("pid", 0)) + " on " +
                                 holder.value("host", "?") + " since " + holder.value("since", "?")
                           : "another process";
    throw Error(Exit::usage, what + " '" + path + "' is in use by " + who, remedy);
  }
  lock.truncate(0);
  lock.write(Json{{"pid", ::getpid()}, {"host", host_name()}, {"since", timestamp()}}.dump() +
             "\n");
  return lock;
}

RunDirectory RunDirectory::open(const std::string& path) {
  make_directories(path + "/log");
  return RunDirectory(path, lock_directory(path, "run directory",
                                           "wait for it, stop it, or give this run another "
                                           "run.name"));
}

void RunDirectory::write_config(const std::string& frozen) const {
  write_file_atomic(path_ + "/config.yaml", frozen);
}

void RunDirectory::record_start(const RunIdentity& id, int64_t step) const {
  if (path_.empty()) return;
  Json run = read_json(path_ + "/run.json");
  run["format"] = 1;
  run["program"] = {{"version", KLA_VERSION},
                    {"git", KLA_GIT},
                    {"compiler", KLA_COMPILER},
                    {"build", KLA_BUILD_TYPE},
                    {"flags", KLA_BUILD_FLAGS}};
  run["machine"] = {{"os", operating_system()},
                    {"cpu", cpu_model()},
                    {"host", host_name()},
                    {"cores", available_cores()},
                    {"memory", memory_bytes()}};
  run["device"] = {{"backend", id.device}, {"threads", id.threads}, {"dtype", "f32"}};
  run["command_line"] = id.command_line;
  run["config_hash"] = id.config_hash;
  run["data"] = {{"train", id.train_identity}, {"val", id.val_identity}};
  run["tokenizer_sha256"] = id.tokenizer_sha256;
  run["seeds"] = {{"run", id.run_seed}, {"shuffle", id.shuffle_seed}};
  run["parameters"] = {{"total", id.parameters}, {"embedding", id.embedding_parameters}};
  run["cost"] = {{"state_values", id.cost.state_values},
                 {"training_flops_per_token", id.cost.training_flops_per_token}};
  run["world_size"] = id.ranks;
  if (!run["starts"].is_array()) run["starts"] = Json::array();
  run["starts"].push_back(
      {{"started", timestamp()}, {"from_step", step}, {"world_size", id.ranks}});
  write_json(path_ + "/run.json", run);
}

void RunDirectory::record_end(int exit_code, int64_t step) const {
  if (path_.empty()) return;
  Json run = read_json(path_ + "/run.json");
  if (!run["starts"].is_array() || run["starts"].empty()) return;
  Json& last = run["starts"].back();
  last["ended"] = timestamp();
  last["to_step"] = step;
  last["exit_code"] = exit_code;
  write_json(path_ + "/run.json", run);
}

void RunDirectory::record_failure(int exit_code, const std::string& why) const {
  if (path_.empty()) return;
  try {
    Json status = read_json(path_ + "/status.json");
    status["state"] = "failed";
    status["why"] = why;
    status["exit_code"] = exit_code;
    write_json(path_ + "/status.json", status);
    const Json step = status.value("step", Json(0));
    record_end(exit_code, step.is_number_integer() ? step.get<int64_t>() : 0);
  } catch (
      const std::exception&) {  // the disk may be what failed; the error itself is on its way up
  }
}

void RunDirectory::write_status(const RunStatus& s) const {
  if (path_.empty()) return;
  Json status = {{"state", s.state},    {"step", s.step},
                 {"steps", s.steps},    {"tokens", s.tokens},
                 {"time", timestamp()}, {"pid", ::getpid()},
                 {"host", host_name()}, {"last_checkpoint", s.last_checkpoint}};
  if (std::isfinite(s.loss)) status["loss"] = s.loss;
  if (s.eta_seconds >= 0) status["eta_seconds"] = s.eta_seconds;
  write_json(path_ + "/status.json", status);
}

}  // namespace kla
