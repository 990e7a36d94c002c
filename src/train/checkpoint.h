// Checkpoints: a directory that is complete and intact, or not there at all.
//
//   checkpoints/.tmp-step-00001000/      written and fsynced file by file, manifest last
//     model.safetensors  optim.rank0000.safetensors  state.json  manifest.json
//   checkpoints/step-00001000/           rename + fsync of the parent: the commit point
//   checkpoints/latest                   a hint for people; loading looks at the directories
//   checkpoints/.trash-step-00000500/    one that is being removed
//
// The manifest holds size and XXH3-128 of every file, and of itself. Loading verifies all of it and
// falls back to the checkpoint before, naming the fault.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "config/config.h"
#include "model/parameters.h"
#include "train/guard.h"
#include "train/safetensors.h"

namespace kla {

// Where a run stands: everything beside the tensors that the next step depends on.
struct TrainState {
  int64_t step = 0;             // steps done, skipped ones included
  int64_t updates = 0;          // AdamW's t: steps that reached the weights
  int64_t tokens = 0;           // targets seen
  int64_t previous_tokens = 0;  // tokens before the last step: which intervals it crossed
  uint64_t next_sample = 0;     // global index of the next training sample
  int64_t evaluated_step = 0;   // last step that was evaluated
  GuardState guard;
  double loss_sum = 0;  // since the last metrics row
  int64_t loss_tokens = 0;
  double train_seconds = 0;  // wall time of all training steps; does not influence anything
  uint64_t run_seed = 0, shuffle_seed = 0;
  std::string config_hash, data_identity, tokenizer_sha256;

  bool operator==(const TrainState&) const = default;
};
std::string to_json(const TrainState&);
TrainState train_state_from_json(const std::string& text, const std::string& name);  // Error{data}

struct Checkpoint {
  std::string path;
  int64_t step = 0;
};

// Every parameter inside a flat buffer, under its name behind `prefix`.
std::vector<NamedView> named_views(const ParameterTable&, View flat,
                                   const std::string& prefix = "");

class CheckpointStore {
 public:
  explicit CheckpointStore(const std::string& directory);  // the run's checkpoints/ folder

  // Removes what an interrupted save or clean-up left behind. Under the run's lock only.
  void remove_leftovers() const;

  // Newest first.
  std::vector<Checkpoint> list() const;
  // The newest one that is intact; warns about every newer one that is not. Nothing if there is
  // none.
  std::optional<Checkpoint> newest_valid() const;
  std::optional<Checkpoint> find(const std::string& name) const;  // Error{data} if it is damaged
  bool ever_held_one() const;  // "latest" or a checkpoint is there

  // Returns its path. Error{io}: this checkpoint was not saved, the others are untouched. Removes
  // what `keep` does not hold, and any checkpoint of a later step: it was damaged when the run
  // continued before it.
  std::string save(const std::vector<NamedView>& model, const std::vector<NamedView>& optimizer,
                   const TrainState& state, const CheckpointConfig& keep) const;

  // Throws Error{data} naming the file that is missing, damaged or not of this checkpoint.
  static void verify(const Checkpoint&);
  static TrainState load_state(const Checkpoint&);
  static void load_model(const Checkpoint&, const std::vector<NamedView>& model);
  static void load_optimizer(const Checkpoint&, const std::vector<NamedView>& optimizer);

 private:
  void remove(const Checkpoint&) const;
  void retain(const CheckpointConfig& keep, int64_t saved_step) const;
  static void write_files(const std::string& folder, const std::vector<NamedView>& model,
                          const std::vector<NamedView>& optimizer, const TrainState& state);

  std::string directory_;
};

}  // namespace kla
