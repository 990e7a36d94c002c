#include "train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "core/error.h"
#include "core/log.h"
#include "eval/mixer_tap.h"
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

Trainer::Trainer(const Config& config, const TrainData& data, bool only_plan)
    : config_(config),
      plan_(make_train_plan(config)),
      data_(data),
      runtime_(config.device),
      model_(config.model, parse_recompute(config.train.recompute)),
      segments_(model_.parameters().segments(config.optim.decay == "all")),
      lengths_(config.eval.lengths) {
  if (lengths_.empty()) lengths_ = {config.data.seq_len};
  if (data.train)
    loader_.emplace(*data.train, config.data.seq_len, config.data.shuffle_seed,
                    config.data.reset_at_documents);
  runtime_.set_up([&] { allocate(); }, [&] { plan_memory(); }, only_plan);
  if (only_plan) return;
  initialize(runtime_.context, weights_, config.run.seed);
  zero_fill(runtime_.context, m_);
  zero_fill(runtime_.context, v_);
}

void Trainer::allocate() {
  ArenaSet& memory = runtime_.memory;
  const DType acc = runtime_.context.accumulate;
  const int64_t n = model_.parameters().flat_size();
  const int64_t B = config_.train.micro_batch_size, T = config_.data.seq_len;
  weights_ = runtime_.allocate_weights(model_.parameters());
  gradients_ = memory["gradients"].allocate(acc, {n});
  m_ = memory["optimizer"].allocate(acc, {n});
  v_ = memory["optimizer"].allocate(acc, {n});
  Arena& batch = memory["batch"];
  grad_norm_ = batch.allocate(DType::f64, {1});
  tokens_ = batch.allocate(DType::i32, {B * T});
  targets_ = batch.allocate(DType::i32, {B * T});
  reset_ = batch.allocate(DType::u8, {B, T});
  losses_ = batch.allocate(acc, {B * T});
  const auto count = static_cast<size_t>(B * T);
  host_ = {std::vector<int32_t>(count), std::vector<int32_t>(count), std::vector<uint8_t>(count)};
  scorers_.clear();
  if (!data_.val && loader_) return;  // without data the plan still counts the evaluation
  for (int64_t length : lengths_)
    scorers_.push_back(
        std::make_unique<Scorer>(runtime_.context, memory["evaluation"], model_, weights_, length));
}

// One dry pass over everything a run does.
void Trainer::plan_memory() {
  Context& ctx = runtime_.context;
  forward_backward(1.0);
  ops::grad_norm(ctx, {.norm = grad_norm_, .g = gradients_});
  update(0.0, 1);
  for (auto& scorer : scorers_) scorer->plan();
}

// --------------------------------------------------------------------------------------- the loop

Trainer::Outcome Trainer::run(MetricsWriter& metrics, RunDirectory& run, const Save& save) {
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
      last_checkpoint_ = save();
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
    result.tokens += loader_->targets_in(state_.next_sample + static_cast<uint64_t>(s));
  result.lr = learning_rate(config_, state_.tokens + result.tokens);

  zero_fill(ctx, gradients_);
  for (int64_t micro = 0; micro < plan_.micro_batches; ++micro) {
    const int64_t first = micro * config_.train.micro_batch_size;
    const double scale = 1.0 / static_cast<double>(result.tokens);
    load_micro_batch(first);
    if (micro + 1 == plan_.micro_batches && probes_due()) {
      const auto sample = state_.next_sample + static_cast<uint64_t>(first);
      probed_forward_backward(scale, loader_->targets_in(sample), result);
    } else {
      forward_backward(scale);
    }
    for (float loss : downloaded<float>(ctx, losses_)) result.loss += static_cast<double>(loss);
  }

  ops::grad_norm(ctx, {.norm = grad_norm_, .g = gradients_});
  result.grad_norm = downloaded<double>(ctx, grad_norm_)[0];
  result.updated = std::isfinite(result.loss) && std::isfinite(result.grad_norm);
  if (result.updated) update(result.lr, ++state_.updates);
  return result;
}

void Trainer::forward_backward(double grad_scale) {
  const Sequence seq{config_.train.micro_batch_size, config_.data.seq_len,
                     config_.data.reset_at_documents ? reset_ : View()};
  model_.forward_backward(runtime_.context, runtime_.memory["activations"], weights_, gradients_,
                          {seq, tokens_, targets_}, grad_scale, losses_);
}

// The same, looking at the first `tokens` tokens of the micro-batch's first row layer by layer.
void Trainer::probed_forward_backward(double grad_scale, int64_t tokens, StepResult& result) {
  const MixerTap tap(
      runtime_.context, config_.model.num_hidden_layers,
      [&](int64_t layer, const MixerPrepForward& prep, const DeltaScanForward& scan) {
        result.probes.push_back(probe_mixer(runtime_.context, layer, prep, scan, tokens));
      });
  forward_backward(grad_scale);
}

bool Trainer::probes_due() const {
  const int64_t interval = config_.log.probe_interval_steps;
  return interval > 0 && (state_.step + 1) % interval == 0;
}

void Trainer::update(double lr, int64_t t) {
  ops::adamw(runtime_.context, {.w = weights_.master,
                                .m = m_,
                                .v = v_,
                                .copy = weights_.second_copy(),
                                .g = gradients_,
                                .norm = grad_norm_,
                                .segments = segments_.data(),
                                .segment_count = static_cast<int64_t>(segments_.size()),
                                .lr = lr,
                                .beta1 = config_.optim.betas[0],
                                .beta2 = config_.optim.betas[1],
                                .eps = config_.optim.eps,
                                .weight_decay = config_.optim.weight_decay,
                                .max_norm = config_.train.grad_clip,
                                .step = t});
}

// The next micro_batch_size samples, as the ops read them.
void Trainer::load_micro_batch(int64_t first_sample) {
  const int64_t T = config_.data.seq_len;
  const bool resets = config_.data.reset_at_documents;
  for (int64_t b = 0; b < config_.train.micro_batch_size; ++b)
    loader_->sample(state_.next_sample + static_cast<uint64_t>(first_sample + b),
                    host_.tokens.data() + b * T, host_.targets.data() + b * T,
                    resets ? host_.reset.data() + b * T : nullptr);
  upload(runtime_.context, tokens_, host_.tokens.data());
  upload(runtime_.context, targets_, host_.targets.data());
  if (resets) upload(runtime_.context, reset_, host_.reset.data());
}

// Advances the state past a step, applies the non-finite guard and writes what is due.
void Trainer::finish_step(const StepResult& result, double seconds, MetricsWriter& metrics,
                          RunDirectory& run) {
  ++state_.step;
  state_.next_sample += static_cast<uint64_t>(plan_.samples_per_step);
  state_.previous_tokens = state_.tokens;
  state_.tokens += result.tokens;
  state_.train_seconds += seconds;
  watch_.step_done(state_.tokens, seconds);
  if (result.updated) {
    state_.loss_sum += result.loss;
    state_.loss_tokens += result.tokens;
  }
  const bool due = state_.step % config_.log.interval_steps == 0 || state_.step == plan_.steps;
  if (due || !result.updated) log_step(result, seconds, metrics, run);
  for (const LayerProbe& probe : result.probes)
    metrics.write(ProbeRow{state_.step, state_.tokens, probe});
  record_step(state_.guard, config_.guard.nonfinite, result.updated, state_.step);
}

void Trainer::log_step(const StepResult& result, double seconds, MetricsWriter& metrics,
                       RunDirectory& run) {
  const double loss = state_.loss_sum / static_cast<double>(state_.loss_tokens);  // NaN if none
  const int64_t skipped = state_.guard.total + (result.updated ? 0 : 1);
  const double rate = watch_.tokens_per_second();
  const double eta = watch_.eta_seconds(config_.train.max_tokens - state_.tokens);
  metrics.write(TrainRow{.step = state_.step,
                         .tokens = state_.tokens,
                         .loss = loss,
                         .grad_norm = result.grad_norm,
                         .lr = result.lr,
                         .tok_s = rate,
                         .step_s = seconds,
                         .skipped = skipped});
  log::info(format_line({.step = state_.step,
                         .steps = plan_.steps,
                         .tokens = state_.tokens,
                         .loss = loss,
                         .grad_norm = result.grad_norm,
                         .lr = result.lr,
                         .tokens_per_second = rate,
                         .eta_seconds = eta,
                         .skipped = skipped}));
  log::status_line(progress_bar(state_.step, plan_.steps) + " " +
                   std::to_string(100 * state_.step / plan_.steps) + "%");
  write_status(run, "training", loss);
  state_.loss_sum = 0;
  state_.loss_tokens = 0;
}

void Trainer::write_status(const RunDirectory& run, const std::string& what, double loss) const {
  run.write_status({.state = what,
                    .step = state_.step,
                    .steps = plan_.steps,
                    .tokens = state_.tokens,
                    .loss = loss,
                    .eta_seconds = watch_.eta_seconds(config_.train.max_tokens - state_.tokens),
                    .last_checkpoint = last_checkpoint_});
}

// True at the first step whose tokens reach a multiple of the interval.
bool Trainer::crossed(int64_t interval) const {
  return interval > 0 && state_.tokens / interval > state_.previous_tokens / interval;
}

// Scores the validation set at every context length; false if a signal came in between.
bool Trainer::evaluate(MetricsWriter& metrics, bool whole_set) {
  struct Interrupted {};
  for (size_t i = 0; i < scorers_.size(); ++i) {
    Perplexity p;
    try {
      p = evaluate_perplexity(*scorers_[i], *data_.val, data_.token_bytes,
                              {.length = lengths_[i],
                               .max_tokens = whole_set ? 0 : config_.eval.max_tokens,
                               .reset_at_documents = config_.data.reset_at_documents},
                              [](int64_t done, int64_t total) {
                                if (stop_requested()) throw Interrupted();
                                log::status_line("evaluating " + progress_bar(done, total));
                              });
    } catch (const Interrupted&) {
      return false;
    }
    metrics.write(EvalRow{.step = state_.step,
                          .tokens = state_.tokens,
                          .length = p.length,
                          .loss = p.loss,
                          .loss_low = p.low,
                          .loss_high = p.high,
                          .n_tokens = p.tokens,
                          .n_bytes = p.bytes,
                          .seconds = p.seconds});
    log::info("eval " + kla::describe(p));
  }
  return true;
}

double Trainer::time_step() {
  const auto start = Stopwatch::Clock::now();
  train_step();
  return std::chrono::duration<double>(Stopwatch::Clock::now() - start).count();
}

double Trainer::time_scoring() {
  double seconds = 0;
  for (size_t i = 0; i < scorers_.size() && data_.val; ++i) {
    const PerplexityOptions options{.length = lengths_[i],
                                    .max_tokens = scorers_[i]->rows() * lengths_[i]};
    const Perplexity p = evaluate_perplexity(*scorers_[i], *data_.val, data_.token_bytes, options);
    seconds += p.seconds / static_cast<double>(p.tokens);
  }
  return seconds;
}

void Trainer::make_mirrors() {
  if (weights_mirror_) return;
  weights_mirror_.emplace(runtime_.context, weights_.master);
  m_mirror_.emplace(runtime_.context, m_);
  v_mirror_.emplace(runtime_.context, v_);
}

void Trainer::pull_tensors() {
  make_mirrors();
  for (auto* mirror : {&weights_mirror_, &m_mirror_, &v_mirror_}) (*mirror)->pull();
}

void Trainer::push_tensors() {
  make_mirrors();
  for (auto* mirror : {&weights_mirror_, &m_mirror_, &v_mirror_}) (*mirror)->push();
  refresh_compute_copy(runtime_.context, weights_);
}

std::vector<NamedView> Trainer::model_tensors() {
  make_mirrors();
  return named_views(model_.parameters(), weights_mirror_->host());
}

std::vector<NamedView> Trainer::optimizer_tensors() {
  make_mirrors();
  std::vector<NamedView> tensors = named_views(model_.parameters(), m_mirror_->host(), "exp_avg.");
  for (NamedView& view : named_views(model_.parameters(), v_mirror_->host(), "exp_avg_sq."))
    tensors.push_back(std::move(view));
  return tensors;
}

}  // namespace kla
