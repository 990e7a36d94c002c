// Run directories as `kla train` leaves them, with made-up but plausible numbers.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/file.h"

namespace kla::report {

struct SyntheticRun {
  std::string name = "kla", rule = "kla";
  int64_t seed = 42;
  int64_t rows = 160;         // logged steps
  int64_t steps_per_row = 5;  // of 8192 tokens
  double floor = 4.05;        // loss after very long training
  std::vector<int64_t> lengths = {128, 512, 2048, 8192};
  int64_t spike_row = -1;  // a single logged loss of 30
  std::string state = "finished";
  int64_t probes = 0;  // probed steps, of 2 layers with 2 heads
};

// A plain linear congruential generator: the same numbers everywhere.
class Noise {
 public:
  explicit Noise(int64_t seed) : state_(static_cast<uint64_t>(seed) * 2654435761u + 1) {}
  double next() {  // about normal, mean 0, deviation 1
    double sum = -6;
    for (int i = 0; i < 12; ++i) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      sum += static_cast<double>(state_ >> 11) * 0x1p-53;
    }
    return sum;
  }

 private:
  uint64_t state_;
};

inline double loss_at(const SyntheticRun& run, double progress) {
  return run.floor + 0.55 * std::exp(-2.2 * progress) + 3.7 * std::exp(-progress * 28);
}

inline std::string frozen_config(const SyntheticRun& run) {
  std::ostringstream text;
  text << "# kla config, frozen\n"
       << "# Every value of the run; the comment says where it came from.\n"
       << "run:\n"
       << "  name: " << run.name << "                                   # command line\n"
       << "  dir: \"runs/quickstart/{name}\"             # configs/quickstart/common.yaml:2:12\n"
       << "  seed: " << run.seed << "                                 # default\n"
       << "model:\n"
       << "  hidden_size: 192                         # configs/quickstart/common.yaml:4:16\n"
       << "  num_heads: 2                             # configs/quickstart/common.yaml:6:14\n"
       << "  step_size:\n"
       << "    rule: " << run.rule
       << "                               # configs/quickstart/x.yaml:4:27\n"
       << "data:\n"
       << "  seq_len: 512                             # configs/quickstart/common.yaml:11:16\n"
       << "optim:\n"
       << "  lr: 4.0e-3                               # configs/quickstart/common.yaml:13:13\n";
  return text.str();
}

inline std::string train_rows(const SyntheticRun& run) {
  std::ostringstream rows;
  rows.precision(9);
  Noise noise(run.seed);
  rows << R"({"t":"event","step":0,"time":1767225600,"what":"start","detail":""})"
       << "\n";
  for (int64_t i = 1; i <= run.rows; ++i) {
    const double progress = static_cast<double>(i) / static_cast<double>(run.rows);
    const int64_t step = i * run.steps_per_row;
    const double loss = i == run.spike_row ? 30 : loss_at(run, progress) + 0.045 * noise.next();
    const double lr = progress < 0.06 ? 4e-3 * progress / 0.06
                                      : 4e-3 * (0.55 + 0.45 * std::cos(3.14159 * progress));
    rows << R"({"t":"train","step":)" << step << R"(,"tokens":)" << step * 8192 << R"(,"time":)"
         << 1767225600.0 + 1.1 * static_cast<double>(i) << R"(,"loss":)" << loss
         << R"(,"grad_norm":)"
         << 0.35 + 2.5 * std::exp(-progress * 20) + 0.05 * std::abs(noise.next()) << R"(,"lr":)"
         << lr << R"(,"tok_s":)" << 37000 + 400 * noise.next() << R"(,"step_s":0.22,"skipped":0})"
         << "\n";
  }
  return rows.str();
}

inline std::string eval_row(const SyntheticRun& run, double progress, int64_t length,
                            int64_t targets, const std::string& extra) {
  const double gain = 0.06 * std::log2(static_cast<double>(length) / 512.0);
  const double loss = loss_at(run, progress) + 0.03 - (length < 512 ? 2 * gain : 0.25 * gain);
  const int64_t step =
      static_cast<int64_t>(progress * static_cast<double>(run.rows)) * run.steps_per_row;
  std::ostringstream row;
  row.precision(9);
  row << R"({"t":"eval","step":)" << step << R"(,"tokens":)" << step * 8192
      << R"(,"split":"val","length":)" << length << R"(,"loss":)" << loss << R"(,"ppl":)"
      << std::exp(loss) << R"(,"n_tokens":)" << targets << R"(,"bpb":)" << loss / 2.79 << extra
      << R"(,"seconds":4.2})"
      << "\n";
  return row.str();
}

inline std::string probe_rows(const SyntheticRun& run) {
  std::ostringstream rows;
  rows.precision(6);
  for (int64_t i = 1; i <= run.probes; ++i)
    for (int layer = 0; layer < 2; ++layer) {
      const double progress = static_cast<double>(i) / static_cast<double>(run.probes);
      const int64_t step = i * run.rows * run.steps_per_row / run.probes;
      rows << R"({"t":"probe","step":)" << step << R"(,"tokens":)" << step * 8192 << R"(,"layer":)"
           << layer << R"(,"quantiles":[0.05,0.25,0.5,0.75,0.95,1])";
      for (const char* name :
           {"write_gain", "decay", "half_life", "key_norm", "value_norm", "key_cosine",
            "residual_before", "residual_after", "state_norm", "state_rank", "inverse_max"}) {
        const double middle = 0.4 + 0.2 * progress + 0.1 * layer;
        rows << R"(,")" << name << R"(":{"n":1024,"all":[)" << 0.2 * middle << "," << 0.6 * middle
             << "," << middle << "," << 1.2 * middle << "," << 1.6 * middle << "," << 1.9 * middle
             << R"(],"heads":[]})";
      }
      rows << "}\n";
    }
  return rows.str();
}

inline std::string interval_fields(const SyntheticRun& run, int64_t length) {
  const double middle =
      loss_at(run, 1) + 0.03 -
      (length < 512 ? 0.12 : 0.015) * std::log2(static_cast<double>(length) / 512.0);
  std::ostringstream text;
  text.precision(9);
  text << R"(,"loss_low":)" << middle - 0.012 << R"(,"loss_high":)" << middle + 0.012;
  return text.str();
}

inline std::string eval_rows(const SyntheticRun& run) {
  std::string rows;
  for (int i = 1; i <= 9; ++i) rows += eval_row(run, i / 10.0, 512, 16384, R"(,"protocol":"full")");
  for (int64_t length : run.lengths)
    rows += eval_row(run, 1, length, 412345,
                     R"(,"protocol":"full","source":"eval")" + interval_fields(run, length));
  return rows;
}

// A new directory under the system's place for temporary files, gone when the process ends.
inline std::string temporary_directory() {
  struct Root {
    std::filesystem::path path = std::filesystem::temp_directory_path() / "kla_report_XXXXXX";
    Root() {
      std::string name = path.string();
      if (!::mkdtemp(name.data())) throw_errno("cannot make '" + name + "'");
      path = name;
    }
    ~Root() { std::filesystem::remove_all(path); }
  };
  static const Root root;
  static int count = 0;
  const std::string path = (root.path / std::to_string(count++)).string();
  make_directories(path);
  return path;
}

inline std::string write_synthetic_run(const std::string& parent, const SyntheticRun& run,
                                       const std::string& folder) {
  const std::string directory = parent + "/" + folder;
  make_directories(directory + "/metrics");
  write_file_atomic(directory + "/config.yaml", frozen_config(run));
  write_file_atomic(
      directory + "/run.json",
      R"({"format":1,"program":{"version":"0.1.0","git":"3f1c2ab4d5e6","compiler":"GNU 12.2.0",)"
      R"("flags":"-O2"},"machine":{"os":"Linux 6.1.0 x86_64","cpu":"a CPU","cores":2},)"
      R"("command_line":["kla","train","configs/quickstart/kla.yaml"],)"
      R"("config_hash":"5d41402abc4b2a76b9719d911017c592","seeds":{"run":42,"shuffle":1234},)"
      R"("parameters":{"total":3412480,"embedding":786432},)"
      R"("starts":[{"started":"2026-01-01T00:00:00Z","from_step":0,"exit_code":0}]})");
  write_file_atomic(directory + "/status.json", R"({"state":")" + run.state + R"(","step":800})");
  write_file_atomic(directory + "/metrics/train.jsonl", train_rows(run));
  write_file_atomic(directory + "/metrics/eval.jsonl", eval_rows(run));
  if (run.probes > 0) write_file_atomic(directory + "/metrics/probes.jsonl", probe_rows(run));
  return directory;
}

}  // namespace kla::report
