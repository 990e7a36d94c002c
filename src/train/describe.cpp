// The table a run prints before its first step: what will be trained, on what, for how long, in how
// much memory.
#include <cstdio>

#include "train/progress.h"
#include "train/trainer.h"

namespace kla {
namespace {

std::string grouped(int64_t n) {  // 516,938,700
  std::string digits = std::to_string(n);
  for (auto i = static_cast<int64_t>(digits.size()) - 3; i > 0; i -= 3)
    digits.insert(static_cast<size_t>(i), ",");
  return digits;
}

template <class... Values>
std::string format(const char* pattern, Values... values) {
  char text[256];
  std::snprintf(text, sizeof(text), pattern, values...);
  return text;
}

using ll = long long;

}  // namespace

std::string Trainer::describe() const {
  const ModelConfig& m = config_.model;
  const ParameterTable& table = model_.parameters();
  const int64_t embedding = model_.embedding_count();
  std::string text;
  text += format(
      "model       %s, rule %s: %lld layers, D %lld, H %lld, K %lld, V %lld, F %lld, N %lld\n",
      m.mixer.c_str(), m.step_size.rule.c_str(), ll{m.num_hidden_layers}, ll{m.hidden_size},
      ll{m.num_heads}, ll{m.key_head_dim}, ll{m.value_head_dim}, ll{m.intermediate_size},
      ll{m.vocab_size});
  text += "parameters  " + grouped(table.count()) + ": embedding " + grouped(embedding) +
          ", other " + grouped(table.count() - embedding);
  if (m.decay_gate == "mamba")  // the study allocates one unused D per head and layer
    text += "; the study counts " + grouped(table.count() + m.num_hidden_layers * m.num_heads);
  text += "\n";
  const TrainConfig& t = config_.train;
  text += format("step        %s tokens: %lld x %lld in %lld micro-batches of %lld\n",
                 grouped(t.global_batch_tokens).c_str(), ll{plan_.samples_per_step},
                 ll{config_.data.seq_len}, ll{plan_.micro_batches}, ll{t.micro_batch_size});
  if (ranks_.size() > 1)
    text +=
        format("ranks       %d, each with %lld of the micro-batches and 1/%d of the optimizer\n",
               ranks_.size(), ll{plan_.share}, ranks_.size());
  text += "schedule    " + grouped(plan_.steps) + " steps, " +
          grouped(plan_.steps * t.global_batch_tokens) + " tokens; " + config_.schedule.name +
          format(", peak lr %.3g, warm-up %s tokens (%.1f steps)\n", config_.optim.lr,
                 grouped(config_.schedule.warmup_tokens).c_str(),
                 static_cast<double>(config_.schedule.warmup_tokens) /
                     static_cast<double>(t.global_batch_tokens));
  if (loader_) {
    text += "data        " + grouped(data_.train->tokens()) + " training tokens in " +
            grouped(data_.train->documents()) + " documents" +
            format(": %.2f epochs", static_cast<double>(plan_.steps * plan_.samples_per_step) /
                                        static_cast<double>(loader_->samples_per_epoch()));
    text += data_.val ? "; " + grouped(data_.val->tokens()) + " validation tokens\n"
                      : "; no validation set\n";
  }
  text += format("device      %s, %d threads, f32; mfu n/a\n", name_of(runtime_.context.device),
                 runtime_.context.pool->threads());
  text += std::string("memory      planned, allocated once") +
          (ranks_.size() > 1 ? ", on each rank" : "") + ":\n" + runtime_.memory.table();
  return text;
}

}  // namespace kla
