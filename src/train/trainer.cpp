#include "train/trainer.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/log.h"
#include "train/guard.h"
#include "train/schedule.h"
#include "train/signals.h"

namespace kla {

TrainPlan make_train_plan(const Config& c) {
  TrainPlan plan;
  plan.steps = std::max<int64_t>(1, c.train.max_tokens / c.train.global_batch_tokens);
  plan.samples_per_step = c.train.global_batch_tokens / c.data.seq_len;
  plan.micro_batches = plan.samples_per_step / c.train.micro_batch_size;
  return plan;
}

// --------------------------------------------------------------------------------------- the loop

Trainer::Outcome Trainer::run(MetricsWriter& metrics, RunDirectory& run,
                              const std::function<void()>& save) {
  watch_.start(state_.tokens);
  int64_t saved_step = state_.step;
  while (true) {
    const bool done = state_.step >= plan_.steps;

    // Once in a while: evaluate, on the whole set at the end.
    const bool due = done || crossed(config_.eval.interval_tokens);
    if (due && state_.evaluated_step != state_.step && !stop_requested())
      if (evaluate(metrics, done)) state_.evaluated_step = state_.step;

    // Once in a while, at the end, and when a signal asks for it: save.
    const bool stop = stop_requested();
    if (state_.step != saved_step &&
        (done || stop || crossed(config_.checkpoint.interval_tokens))) {
      save();
      saved_step = state_.step;
    }
    if (stop) return Outcome::stopped;
    if (done) return Outcome::finished;

    const auto start = Stopwatch::Clock::now();
    const StepResult result = train_step();
    const double seconds = std::chrono::duration<double>(Stopwatch::Clock::now() - start).count();
    finish_step(result, seconds, metrics, run);
  }
}

// One optimizer step over global_batch_tokens targets, in micro-batches.
Trainer::StepResult Trainer::train_step() {
  Context& ctx = runtime_.context;
  StepResult result;
  for (int64_t s = 0; s < plan_.samples_per_step; ++s)
    result.tokens += loader_.targets_in(state_.next_sample + static_cast<uint64_t>(s));
  result.lr = learning_rate(config_, state_.tokens + result.tokens);

  zero_fill(ctx, gradients_);
  for (int64_t micro = 0; micro < plan_.micro_batches; ++micro) {
    load_micro_batch(micro * config_.train.micro_batch_size);
    const Sequence seq{config_.train.micro_batch_size, config_.data.seq_len,
                       config_.data.reset_at_documents ? reset_ : View()};
    model_.forward_backward(ctx, runtime_.memory["activations"], weights_, gradients_,
                            {seq, tokens_, targets_}, 1.0 / static_cast<double>(result.tokens),
                            losses_);
    for (int64_t i = 0; i < losses_.size(); ++i)
      result.loss += static_cast<double>(losses_.as<float>()[i]);
  }

  ops::grad_norm(ctx, {.norm = grad_norm_, .g = gradients_});
  result.grad_norm = grad_norm_.as<double>()[0];
  result.updated = std::isfinite(result.loss) && std::isfinite(result.grad_norm);
  if (result.updated) {
    ++state_.updates;
    ops::adamw(ctx, {.w = weights_.master,
                     .m = m_,
                     .v = v_,
                     .copy = {},
                     .g = gradients_,
                     .norm = grad_norm_,
                     .segments = segments_.data(),
                     .segment_count = static_cast<int64_t>(segments_.size()),
                     .lr = result.lr,
                     .beta1 = config_.optim.betas[0],
                     .beta2 = config_.optim.betas[1],
                     .eps = config_.optim.eps,
                     .weight_decay = config_.optim.weight_decay,
                     .max_norm = config_.train.grad_clip,
                     .step = state_.updates});
  }
  return result;
}

// The next micro_batch_size samples, as the ops read them.
void Trainer::load_micro_batch(int64_t first_sample) {
  const int64_t T = config_.data.seq_len;
  const bool resets = config_.data.reset_at_documents;
  for (int64_t b = 0; b < config_.train.micro_batch_size; ++b)
    loader_.sample(state_.next_sample + static_cast<uint64_t>(first_sample + b),
                   tokens_.as<int32_t>() + b * T, targets_.as<int32_t>() + b * T,
                   resets ? reset_.as<uint8_t>() + b * T : nullptr);
}

// Advances the state past a step, applies the non-finite guard and writes what is due.
void Trainer::finish_step(const StepResult& result, double seconds, MetricsWriter& metrics,
                          RunDirectory& run) {
  ++state_.step;
  state_.next_sample += static_cast<uint64_t>(plan_.samples_per_step);
  state_.previous_tokens = state_.tokens;
  state_.tokens += result.tokens;
  watch_.step_done(state_.tokens, seconds);
  if (result.updated) {
    state_.loss_sum += result.loss;
    state_.loss_tokens += result.tokens;
  }
  record_step(state_.guard, config_.guard.nonfinite, result.updated, state_.step);
}
