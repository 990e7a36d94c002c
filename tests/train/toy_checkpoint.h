// A handful of tensors whose every value follows from the step, so that a test can tell which
// checkpoint it has loaded and that nothing in it is foreign.
#pragma once

#include <gtest/gtest.h>

#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "train/checkpoint.h"

namespace kla::testing {

class ToyTensors {
 public:
  ToyTensors() = default;
  explicit ToyTensors(int64_t step) {
    for (std::vector<float>* values : {&weight_, &bias_, &m_, &v_}) {
      std::iota(values->begin(), values->end(), static_cast<float>(1000 * step));
    }
  }

  std::vector<NamedView> model() {
    return {{"layer.weight", View(weight_.data(), {3, 5, 7})},
            {"layer.bias", View(bias_.data(), {9})}};
  }
  std::vector<NamedView> optimizer() {
    return {{"exp_avg.layer.weight", View(m_.data(), {105})},
            {"exp_avg_sq.layer.weight", View(v_.data(), {105})}};
  }
  bool operator==(const ToyTensors&) const = default;

 private:
  std::vector<float> weight_ = std::vector<float>(105), bias_ = std::vector<float>(9),
                     m_ = std::vector<float>(105), v_ = std::vector<float>(105);
};

inline constexpr int64_t kTokensPerStep = 100;

inline TrainState toy_state(int64_t step) {
  TrainState state;
  state.step = step;
  state.updates = step - 1;
  state.tokens = kTokensPerStep * step;
  state.loss_sum = 0.1 * static_cast<double>(step);
  state.config_hash = "c0ffee";
  return state;
}

inline void save_step(const std::string& directory, int64_t step,
                      const CheckpointConfig& keep = {}) {
  ToyTensors tensors(step);
  CheckpointStore(directory).save(tensors.model(), tensors.optimizer(), toy_state(step), keep);
}

inline std::vector<int64_t> steps_in(const std::string& directory) {
  std::vector<int64_t> steps;
  for (const Checkpoint& checkpoint : CheckpointStore(directory).list())
    steps.push_back(checkpoint.step);
  return steps;
}

// The step of the newest checkpoint that loads, every value compared; -1 if there is none, -2 if
// the content is not that of its step.
inline int64_t newest_loadable_step(const std::string& directory) {
  const auto found = CheckpointStore(directory).newest_valid();
  if (!found) return -1;
  ToyTensors loaded;
  CheckpointStore::load_model(*found, loaded.model());
  CheckpointStore::load_optimizer(*found, loaded.optimizer());
  const bool same = loaded == ToyTensors(found->step) &&
                    CheckpointStore::load_state(*found) == toy_state(found->step);
  return same ? found->step : -2;
}

}  // namespace kla::testing
