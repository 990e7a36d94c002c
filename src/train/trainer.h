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
#include "distributed/communicator.h"
#include "eval/perplexity.h"
#include "model/language_model.h"
#include "model/runtime.h"
#include "train/checkpoint.h"
#include "train/metrics.h"
#include "train/optimizer.h"
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
  int64_t share = 0;             // of them, each rank's; rank r does those from r * share on
};
// Error{usage} if so many ranks cannot share the micro-batches of a step.
TrainPlan make_train_plan(const Config&, int ranks = 1);

class Trainer {
 public:
  static constexpr double kNoLoss = std::numeric_limits<double>::quiet_NaN();

  // Plans and allocates all memory, and initialises the weights. With `only_plan` nothing is
  // allocated and only describe() may be called. Error{usage|io}. All ranks of a run make the same
  // calls.
  Trainer(const Config&, const TrainData&, bool only_plan = false,
          Communicator& ranks = Communicator::alone());

  std::string describe() const;  // the start table: model, parameters, steps, data, memory
  const LanguageModel& model() const { return model_; }

  // What a checkpoint holds, in the host memory of rank 0: pull_tensors() before a save brings it
  // from the devices of all ranks, push_tensors() after a restore takes it there. The state is
  // replaced, on every rank.
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
  };
  void allocate();
  void plan_memory();
  HostMirror& weights_mirror();
  bool strict() const { return config_.device.deterministic == "strict"; }
  bool stop_agreed();
  StepResult train_step();
  void accumulate(int64_t first, int64_t count, size_t level, double grad_scale);
  void load_micro_batch(int64_t first_sample);
  void forward_backward(View gradients, double grad_scale);
  void probed_forward_backward(View gradients, double grad_scale, int64_t tokens);
  void finish_step(const StepResult&, double seconds, MetricsWriter&, RunDirectory&);
  void log_step(const StepResult&, double seconds, MetricsWriter&, RunDirectory&);
  bool crossed(int64_t interval) const;
  bool probes_due() const;  // in the step that train_step() is about to do
  bool evaluate(MetricsWriter&, bool whole_set);

  Config config_;
  Communicator& ranks_;
  TrainPlan plan_;
  TrainData data_;
  std::optional<Loader> loader_;  // none when only planning without data
  Runtime runtime_;
  LanguageModel model_;
  Weights weights_;
  Optimizer optimizer_;
  std::vector<View> gradients_;       // [flat_size] acc: the step's, and one for each tree level
  std::vector<LayerProbe> probes_;    // of the step's first micro-batch, if due; on rank 0
  std::vector<double> micro_losses_;  // sums over the targets of this rank's micro-batches
  View tokens_, targets_;             // [B*T] i32
  View reset_;                        // [B,T] u8
  View losses_;                       // [B*T] acc
  struct HostBatch {                  // of the same shapes, filled by the loader
    std::vector<int32_t> tokens, targets;
    std::vector<uint8_t> reset;
  } host_;
  std::optional<HostMirror> weights_mirror_;
  std::vector<int64_t> lengths_;                  // context lengths of the evaluation
  std::vector<std::unique_ptr<Scorer>> scorers_;  // one for each
  TrainState state_;
  Stopwatch watch_;
  std::string last_checkpoint_;
};

}  // namespace kla
