#include "model/model_cost.h"

#include "core/op.h"
#include "kernels/op_cost.h"
#include "model/language_model.h"
#include "model/runtime.h"

namespace kla {
namespace {

struct FlopCounter final : OpObserver {
  void begin(const OpBase& op, const void* args) override { flops += cost_of(op, args).flops; }
  void end() override {}
  double flops = 0;
};

}  // namespace

ModelCost count_cost(const ModelConfig& config, int64_t T) {
  Runtime runtime(Device::cpu, 1);
  LanguageModel model(config);
  FlopCounter counter;
  Weights weights;
  View gradients, tokens, targets, losses;
  const auto allocate = [&] {
    const DType acc = runtime.context.accumulate;
    weights = runtime.allocate_weights(model.parameters());
    gradients = runtime.memory["gradients"].allocate(acc, {model.parameters().flat_size()});
    tokens = runtime.memory["batch"].allocate(DType::i32, {T});
    targets = runtime.memory["batch"].allocate(DType::i32, {T});
    losses = runtime.memory["batch"].allocate(acc, {T});
  };
  const auto forward_backward = [&] {  // dry: it visits every op and computes nothing
    runtime.context.observer = &counter;
    model.forward_backward(runtime.context, runtime.memory["activations"], weights, gradients,
                           {{1, T, {}}, tokens, targets}, 1.0, losses);
  };
  runtime.set_up(allocate, forward_backward, true);
  return {config.num_hidden_layers * config.num_heads * config.key_head_dim * config.value_head_dim,
          counter.flops / static_cast<double>(T)};
}

}  // namespace kla
