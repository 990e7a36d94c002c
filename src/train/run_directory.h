// The run directory (FORMATS 3): one process at a time, and a record of what ran.
//   config.yaml            the frozen config
//   run.json               identity: program, machine, data, seeds, every start and end
//   status.json            where it stands now, replaced atomically
//   metrics/ log/ checkpoints/ lock
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/file.h"
#include "model/model_cost.h"

namespace kla {

struct RunIdentity {
  std::vector<std::string> command_line;
  std::string config_hash, tokenizer_sha256, train_identity, val_identity;
  uint64_t run_seed = 0, shuffle_seed = 0;
  int64_t parameters = 0, embedding_parameters = 0;
  ModelCost cost = {};
  std::string device;
  int threads = 0, ranks = 1;
};

struct RunStatus {
  std::string state;  // training | finished | stopped | failed
  int64_t step = 0, steps = 0, tokens = 0;
  double loss = 0;  // of the last metrics row; NaN: none yet
  double eta_seconds = -1;
  std::string last_checkpoint;
};

// Takes PATH/lock for this process, for as long as the result lives. Error{usage} naming the
// process that holds it and what `what` ("run directory") is in use; Error{io}.
File lock_directory(const std::string& path, const std::string& what, const std::string& remedy);

class RunDirectory {
 public:
  // Creates the directory if need be and takes its lock; Error{usage} naming pid and host of
  // another process that holds it, Error{io}.
  static RunDirectory open(const std::string& path);
  RunDirectory() = default;  // of ranks other than 0: touches nothing
  RunDirectory(RunDirectory&&) noexcept = default;
  RunDirectory& operator=(RunDirectory&&) noexcept = default;

  const std::string& path() const { return path_; }
  std::string checkpoints() const { return path_ + "/checkpoints"; }
  bool has_config() const { return file_exists(path_ + "/config.yaml"); }
  std::string config_text() const { return read_file(path_ + "/config.yaml", 1 << 20); }
  void write_config(const std::string& frozen) const;

  // Appends a start or an end to run.json.
  void record_start(const RunIdentity&, int64_t step) const;
  void record_end(int exit_code, int64_t step) const;
  void record_failure(int exit_code, const std::string& why) const;  // never throws
  void write_status(const RunStatus&) const;

 private:
  explicit RunDirectory(std::string path, File lock)
      : path_(std::move(path)), lock_(std::move(lock)) {}
  std::string path_;
  File lock_;  // flock()ed for the lifetime
};

}  // namespace kla
