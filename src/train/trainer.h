// The training run: what it owns, one optimizer step, and the loop. Everything the loop decides
// follows from the config and the TrainState, so a resumed run goes on as if it had never stopped,
// bit for bit.
#pragma once

#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "config/config.h"
#include "data/loader.h"
#include "eval/perplexity.h"
#include "model/language_model.h"
#include "model/runtime.h"
#include "train/checkpoint.h"
#include "train/metrics.h"
#include "train/progress.h"
#include "train/run_directory.h"

namespace kla {

struct TrainData {
  const TokenDataset* train = nullptr;  // null: only to plan
  const TokenDataset* val = nullptr;    // null: no evaluation
  std::vector<int32_t> token_bytes;     // bytes of text of each id, for bits per byte
};

// Numbers that follow from the config.
struct TrainPlan {
  int64_t steps = 0;             // optimizer steps: max_tokens / global_batch_tokens, at least one
  int64_t samples_per_step = 0;  // windows of seq_len tokens
  int64_t micro_batches = 0;     // forward passes a step
};
TrainPlan make_train_plan(const Config&);

class Trainer {
 public:
  static constexpr double kNoLoss = std::numeric_limits<double>::quiet_NaN();

  // Plans and allocates all memory, and initialises the weights. With `only_plan` nothing is
  // allocated and only describe() may be called. Error{usage|io}.
  Trainer(const Config&, const TrainData&, bool only_plan = false);

  std::string describe() const;  // the start table: model, parameters, steps, data, memory
  const LanguageModel& model() const { return model_; }

  // What a checkpoint holds, in host memory: pull_tensors() before a save brings it from the
  // device, push_tensors() after a restore takes it there. The state is replaced.
  void pull_tensors();
  void push_tensors();
  std::vector<NamedView> model_tensors();
  std::vector<NamedView> optimizer_tensors();
  TrainState& state() { return state_; }

  // Trains until the token budget is spent or a signal asks to stop. `save` writes a checkpoint and
  // returns its name.
  enum class Outcome { finished, stopped };
  using Save = std::function<std::string()>;
  Outcome run(MetricsWriter&, RunDirectory&, const Save& save);

  void write_status(const RunDirectory&, const std::string& what, double loss = kNoLoss) const;

  // For predictions: wall seconds of one more training step, and of scoring one validation target
  // at every context length (0 without a validation set). The weights move, nothing is written.
  double time_step();
  double time_scoring();

  const Context& context() const { return runtime_.context; }
  const ArenaSet& memory() const { return runtime_.memory; }

 private:
  struct StepResult {
    double loss = 0;     // sum of the losses of all targets of the step
    int64_t tokens = 0;  // targets
    double grad_norm = 0;
    double lr = 0;
    bool updated = false;
    std::vector<LayerProbe> probes;  // of the last micro-batch, if they are due
  };
  void allocate();
  void plan_memory();
  void make_mirrors();
  StepResult train_step();
  void load_micro_batch(int64_t first_sample);
  void forward_backward(double grad_scale);
  void probed_forward_backward(double grad_scale, int64_t tokens, StepResult&);
  void update(double lr, int64_t t);
  void finish_step(const StepResult&, double seconds, MetricsWriter&, RunDirectory&);
  void log_step(const StepResult&, double seconds, MetricsWriter&, RunDirectory&);
  bool crossed(int64_t interval) const;
  bool probes_due() const;  // in the step that train_step() is about to do
  bool evaluate(MetricsWriter&, bool whole_set);

  Config config_;
  TrainPlan plan_;
  TrainData data_;
  std::optional<Loader> loader_;  // none when only planning without data
  Runtime runtime_;
  LanguageModel model_;
  Weights weights_;
  View gradients_, m_, v_;  // [flat_size] acc
  View grad_norm_;          // [1] f64
  View tokens_, targets_;   // [B*T] i32
  View reset_;              // [B,T] u8
  View losses_;             // [B*T] acc
  struct HostBatch {        // of the same shapes, filled by the loader
    std::vector<int32_t> tokens, targets;
    std::vector<uint8_t> reset;
  } host_;
  std::optional<HostMirror> weights_mirror_, m_mirror_, v_mirror_;
  std::vector<AdamwSegment> segments_;
  std::vector<int64_t> lengths_;                  // context lengths of the evaluation
  std::vector<std::unique_ptr<Scorer>> scorers_;  // one for each
  TrainState state_;
  Stopwatch watch_;
  std::string last_checkpoint_;
};

}  // namespace kla
