// AdamW over the flat buffers, spread over the ranks of a run (ZeRO stage 1, Rajbhandari et al.
// 2020): every rank has all weights and gradients, but the optimizer state and the update of one
// slice only. A step sums the gradients so that each rank holds its slice of the sum, updates that
// slice of the weights, and exchanges the slices. One rank alone has a slice that is everything.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "config/config.h"
#include "distributed/communicator.h"
#include "model/runtime.h"
#include "train/safetensors.h"

namespace kla {

// How a flat buffer of n elements is cut: equal slices, aligned to 64 elements.
struct Partition {
  Partition(int64_t n, int ranks, bool strict);

  int64_t flat_size;    // of the buffers: n, rounded up
  int64_t slice;        // elements of a rank: rank r has [r * slice, (r + 1) * slice)
  int64_t norm_blocks;  // of a slice: the norm is put together from the norms of these

  // Strict mode sums the norm over so many blocks, however many ranks there are.
  static constexpr int64_t kStrictBlocks = 64;
};

class Optimizer {
 public:
  Optimizer(const Config&, const ParameterTable&, Communicator&);

  int64_t flat_size() const { return partition_.flat_size; }  // of weights and gradients
  void allocate(Runtime&);
  void reset(const Context&);  // to the start of a run

  // The two halves of a step. After the first, only this rank's slice of `gradients` means
  // anything.
  double sum_gradients(Context&, View gradients);  // returns the global norm
  void update(Context&, const Weights&, View gradients, double lr, int64_t t);

  // The whole state in host memory, for checkpoints: m as exp_avg.*, v as exp_avg_sq.*. All ranks
  // call pull() before a save and push() after a restore; the tensors are rank 0's alone.
  void pull();
  void push();
  std::vector<NamedView> tensors();

 private:
  // m or v: this rank's slice, and on rank 0 a place for all slices.
  struct Moment {
    View slice;
    std::optional<HostMirror> mirror;
    std::vector<std::byte> gathered;
  };
  View whole(Moment&);
  void make_mirrors();

  const OptimConfig& config_;
  double max_norm_;
  const ParameterTable& table_;
  Communicator& ranks_;
  Partition partition_;
  std::vector<AdamwSegment> segments_;  // of the slice, counted from its start
  Context* context_ = nullptr;
  Moment m_, v_;
  View norm_;         // [1] f64: global
  View block_norms_;  // [norm_blocks] f64: of this rank
};

}  // namespace kla
