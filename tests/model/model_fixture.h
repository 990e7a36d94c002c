// A small model with weights, gradients and planned memory on any device: what the model tests
// share.
#pragma once

#include <vector>

#include "core/philox.h"
#include "model/language_model.h"
#include "model/runtime.h"

namespace kla::testing {

inline ModelConfig small_config(const std::string& rule = "kla") {
  ModelConfig c;
  c.hidden_size = 16;
  c.num_hidden_layers = 2;
  c.num_heads = 2;
  c.key_head_dim = 8;
  c.value_head_dim = 12;
  c.intermediate_size = 24;
  c.vocab_size = 32;
  c.step_size.rule = rule;
  if (rule == "deltanet") c.decay_gate = "logsigmoid16";
  return c;
}

class ModelOnDevice {
 public:
  ModelOnDevice(const ModelConfig& config, Device device, int64_t rows, int64_t tokens_a_row,
                Recompute recompute = Recompute::none, int threads = 2)
      : B(rows),
        T(tokens_a_row),
        runtime(device, threads),
        context(runtime.context),
        model(config, recompute) {
    runtime.set_up([&] { allocate(); },
                   [&] {
                     model.forward_backward(context, activations(), weights, gradients, batch(),
                                            1.0, losses);
                     model.loss_from(context, weights, batch(), state, losses);
                     model.logits_from(context, weights, {B, T, {}}, tokens, state, logits);
                   });
    initialize(model.parameters(), weights.master, 42);
    const RandomStream random(7, "text");
    for (int64_t m = 0; m <= B * T; ++m) {
      const auto id = static_cast<int32_t>(random.bits(static_cast<uint64_t>(m)) %
                                           static_cast<uint64_t>(model.vocab_size()));
      if (m < B * T) tokens.as<int32_t>()[m] = id;
      if (m > 0) targets.as<int32_t>()[m - 1] = id;
    }
  }

  Batch batch() const { return {{B, T, use_reset ? reset : View()}, tokens, targets}; }

  // Sum of the losses; gradients of grad_scale * sum from zero.
  double forward_backward(double grad_scale = 1.0) {
    fill(gradients, 0);
    model.forward_backward(context, activations(), weights, gradients, batch(), grad_scale, losses);
    return sum(losses);
  }
  double loss() {
    LanguageModel::clear(context, state);
    model.loss_from(context, weights, batch(), state, losses);
    return sum(losses);
  }

  static double at(View v, int64_t i) {
    return v.dtype == DType::f64 ? v.as<double>()[i] : static_cast<double>(v.as<float>()[i]);
  }
  static void set(View v, int64_t i, double x) {
    if (v.dtype == DType::f64) {
      v.as<double>()[i] = x;
    } else {
      v.as<float>()[i] = static_cast<float>(x);
    }
  }
  static void fill(View v, double x) {
    for (int64_t i = 0; i < v.size(); ++i) set(v, i, x);
  }
  static double sum(View v) {
    double total = 0;
    for (int64_t i = 0; i < v.size(); ++i) total += at(v, i);
    return total;
  }
  static std::vector<double> values(View v) {
    std::vector<double> out;
    for (int64_t i = 0; i < v.size(); ++i) out.push_back(at(v, i));
    return out;
  }

  Arena& activations() { return runtime.memory["activations"]; }

  int64_t B, T;
  Runtime runtime;
  Context& context;
  LanguageModel model;
  Weights weights;
  View gradients, losses, logits, tokens, targets, reset;
  bool use_reset = false;
  RecurrentState state;

 private:
  void allocate() {
    Arena& arena = runtime.memory["batch"];
    for (const char* name : {"weights", "batch", "activations", "scratch"})
      runtime.memory[name].poison(true);
    weights = runtime.allocate_weights(model.parameters());
    gradients = arena.allocate(context.accumulate, {model.parameters().flat_size()});
    losses = arena.allocate(context.accumulate, {B * T});
    logits = arena.allocate(context.accumulate, {B, model.vocab_size()});
    tokens = arena.allocate(DType::i32, {B * T});
    targets = arena.allocate(DType::i32, {B * T});
    reset = arena.allocate(DType::u8, {B, T});
    state = model.allocate_state(context, arena, B);
  }
};

}  // namespace kla::testing
