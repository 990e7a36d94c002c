// Metrics files (FORMATS 5.1): one JSON object a line, appended and flushed; everything else is
// derived from them. On resume, rows beyond the checkpoint move to metrics/superseded.jsonl, so
// that the files of an interrupted run equal those of an uninterrupted one, but for wall-clock
// fields and event rows.
#pragma once

#include <cstdint>
#include <string>

#include "core/file.h"
#include "eval/probes.h"

namespace kla {

struct TrainRow {
  int64_t step = 0, tokens = 0;
  double loss = 0;       // nats, mean over all targets since the last row
  double grad_norm = 0;  // of the last step, before clipping
  double lr = 0;
  double tok_s = 0, step_s = 0;  // wall clock
  int64_t skipped = 0;           // steps skipped by the guard so far
};

struct EvalRow {
  int64_t step = 0, tokens = 0;
  std::string source = "train";   // train | eval: from the loop, or from `kla eval`
  std::string protocol = "full";  // full | kla_release, and the part of it
  int64_t length = 0;             // context length
  double loss = 0;
  double loss_low = 0, loss_high = 0;  // 95 % bootstrap over documents; NaN: not known
  int64_t n_tokens = 0, n_bytes = 0;   // n_bytes 0: no bits per byte
  double seconds = 0;                  // wall clock
};

// One layer at one step: {"t":"probe","step":..,"layer":..,"quantiles":[0.05,..],
// "write_gain":{"n":..,"all":[..],"heads":[[..],..]}, ..}, all numbers to 6 digits.
struct ProbeRow {
  int64_t step = 0, tokens = 0;
  LayerProbe probe;
};

struct EventRow {
  int64_t step = 0;
  std::string what;  // start | resume | stop | checkpoint_failed | finished
  std::string detail;
};

class MetricsWriter {
 public:
  MetricsWriter() = default;  // writes nothing: on ranks other than 0
  // Opens DIRECTORY/metrics/, cuts rows with step > `step` and a torn last line. Error{io}.
  MetricsWriter(const std::string& run_directory, int64_t step, bool csv);

  void write(const TrainRow&);
  void write(const EvalRow&);
  void write(const ProbeRow&);  // the file exists from the first one on
  void write(const EventRow&);
  void sync();  // before a checkpoint: the rows up to its step must outlive a power loss too

 private:
  std::string directory_;
  bool csv_ = false;
  File train_, eval_, csv_file_, probes_;
};

// Appends an eval row to a run that is not training (for `kla eval`).
void append_eval_row(const std::string& run_directory, const EvalRow&);

}  // namespace kla
