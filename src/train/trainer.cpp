#include "train/trainer.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "distributed/host_communicator.h"
#include "eval/mixer_tap.h"
#include "train/guard.h"
#include "train/schedule.h"
#include "train/signals.h"

namespace kla {

namespace {

// Numbers of ranks that can share `micro_batches`, as "1, 2, 4".
std::string possible_ranks(int64_t micro_batches, bool strict) {
  std::string text;
  for (int64_t n = 1; n <= std::min<int64_t>(micro_batches, 1024); ++n) {
    const bool fits =
        strict ? std::has_single_bit(static_cast<uint64_t>(n)) && n <= Partition::kStrictBlocks
               : true;
    if (fits && micro_batches % n == 0) text += (text.empty() ? "" : ", ") + std::to_string(n);
  }
  return text;
}

}  // namespace

TrainPlan make_train_plan(const Config& c, int ranks) {
  TrainPlan plan;
  plan.steps = std::max<int64_t>(1, c.train.max_tokens / c.train.global_batch_tokens);
  plan.samples_per_step = c.train.global_batch_tokens / c.data.seq_len;
  plan.micro_batches = plan.samples_per_step / c.train.micro_batch_size;
  plan.share = plan.micro_batches / ranks;
  const bool strict = c.device.deterministic == "strict";
  const std::string possible = possible_ranks(plan.micro_batches, strict);
  if ((", " + possible + ",").find(", " + std::to_string(ranks) + ",") == std::string::npos)
    throw Error(Exit::usage,
                std::to_string(ranks) + " ranks cannot share the " +
                    std::to_string(plan.micro_batches) + " micro-batches of a step evenly" +
                    (strict ? " (device.deterministic: strict needs a power of two)" : ""),
                "start " + possible + " ranks, or change train.micro_batch_size");
  return plan;
}

Trainer::Trainer(const Config& config, const TrainData& data, bool only_plan, Communicator& ranks)
    : config_(config),
      ranks_(ranks),
      plan_(make_train_plan(config, ranks.size())),
      data_(data),
      runtime_(config.device),
      model_(config.model, parse_recompute(config.train.recompute)),
      optimizer_(config_, model_.parameters(), ranks),
      lengths_(config.eval.lengths) {
  if (lengths_.empty()) lengths_ = {config.data.seq_len};
  if (strict() && !services_of(runtime_.context.device).host_memory())
    throw Error(Exit::usage, "device.deterministic: strict exists on the CPU only",
                "set device.deterministic: default; a run still repeats bit for bit on the same "
                "number of ranks");
  if (data.train)
    loader_.emplace(*data.train, config.data.seq_len, config.data.shuffle_seed,
                    config.data.reset_at_documents);
  runtime_.set_up([&] { allocate(); }, [&] { plan_memory(); }, only_plan);
  if (only_plan) return;
  initialize(runtime_.context, weights_, config.run.seed);
  optimizer_.reset(runtime_.context);
}

void Trainer::allocate() {
  ArenaSet& memory = runtime_.memory;
  const DType acc = runtime_.context.accumulate;
  const int64_t n = optimizer_.flat_size();
  const int64_t B = config_.train.micro_batch_size, T = config_.data.seq_len;
  weights_ = runtime_.allocate_weights(model_.parameters(), n);
  const int levels = strict() ? std::countr_zero(static_cast<uint64_t>(plan_.share)) : 0;
  gradients_.clear();
  for (int level = 0; level <= levels; ++level)
    gradients_.push_back(memory["gradients"].allocate(acc, {n}));
  optimizer_.allocate(runtime_);
  Arena& batch = memory["batch"];
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
  forward_backward(gradients_[0], 1.0);
  optimizer_.sum_gradients(ctx, gradients_[0]);
  optimizer_.update(ctx, weights_, gradients_[0], 0.0, 1);
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
    if (due && state_.evaluated_step != state_.step && !stop_agreed())
      if (evaluate(metrics, done)) state_.evaluated_step = state_.step;

    // Once in a while, at the end, and when a signal asks for it: save.
    const bool stop = stop_agreed();
    if (state_.step != saved_step &&
        (done || stop || crossed(config_.checkpoint.interval_tokens))) {
      last_checkpoint_ = save();
      saved_step = state_.step;
    }
    if (stop) return Outcome::stopped;
    if (done) return Outcome::finished;

    const auto start = Clock::now();
    const StepResult result = train_step();
    const double seconds = seconds_since(start);
    finish_step(result, seconds, metrics, run);
    // The first step, which sets up libraries and touches all memory, had longer.
    ranks_.channel().set_timeout(static_cast<double>(config_.dist.step_timeout_s));
  }
}

// A signal reaches the ranks at different times: they stop at the same step all the same.
bool Trainer::stop_agreed() {
  const bool stop = ranks_.any(stop_requested(), "the agreement to go on");
  if (stop) request_stop();
  return stop;
}

// One optimizer step over global_batch_tokens targets, in micro-batches, of which each rank does
// its share. Every rank gets the same result.
Trainer::StepResult Trainer::train_step() {
  Context& ctx = runtime_.context;
  StepResult result;
  for (int64_t s = 0; s < plan_.samples_per_step; ++s)
    result.tokens += loader_->targets_in(state_.next_sample + static_cast<uint64_t>(s));
  result.lr = learning_rate(config_, state_.tokens + result.tokens);

  probes_.clear();
  micro_losses_.clear();
  accumulate(ranks_.rank() * plan_.share, plan_.share, 0, 1.0 / static_cast<double>(result.tokens));
  for (double loss : ranks_.gather(micro_losses_, "the losses")) result.loss += loss;

  result.grad_norm = optimizer_.sum_gradients(ctx, gradients_[0]);
  result.updated = std::isfinite(result.loss) && std::isfinite(result.grad_norm);
  if (result.updated) optimizer_.update(ctx, weights_, gradients_[0], result.lr, ++state_.updates);
  return result;
}

// Gradients of micro-batches [first, first + count), summed in gradients_[level]. In strict mode by
// halves: the ranks' shares are branches of one binary tree over the micro-batches of the step, and
// Communicator::reduce_scatter is its top, so the sum is the same for every number of ranks.
void Trainer::accumulate(int64_t first, int64_t count, size_t level, double grad_scale) {
  Context& ctx = runtime_.context;
  if (strict() && count % 2 == 0) {
    accumulate(first, count / 2, level, grad_scale);
    accumulate(first + count / 2, count / 2, level + 1, grad_scale);
    return add(ctx, gradients_[level], gradients_[level + 1]);
  }
  zero_fill(ctx, gradients_[level]);
  for (int64_t micro = first; micro < first + count; ++micro) {
    load_micro_batch(micro * config_.train.micro_batch_size);
    if (micro == 0 && probes_due()) {
      const int64_t tokens = loader_->targets_in(state_.next_sample);
      probed_forward_backward(gradients_[level], grad_scale, tokens);
    } else {
      forward_backward(gradients_[level], grad_scale);
    }
    double& sum = micro_losses_.emplace_back(0.0);
    for (float loss : downloaded<float>(ctx, losses_)) sum += static_cast<double>(loss);
  }
}

void Trainer::forward_backward(View gradients, double grad_scale) {
  const Sequence seq{config_.train.micro_batch_size, config_.data.seq_len,
                     config_.data.reset_at_documents ? reset_ : View()};
  model_.forward_backward(runtime_.context, runtime_.memory["activations"], weights_, gradients,
                          {seq, tokens_, targets_}, grad_scale, losses_);
}

// The same, looking at the first `tokens` tokens of the micro-batch's first row layer by layer.
void Trainer::probed_forward_backward(View gradients, double grad_scale, int64_t tokens) {
  const MixerTap tap(
      runtime_.context, config_.model.num_hidden_layers,
      [&](int64_t layer, const MixerPrepForward& prep, const DeltaScanForward& scan) {
        probes_.push_back(probe_mixer(runtime_.context, layer, prep, scan, tokens));
      });
  forward_backward(gradients, grad_scale);
}

bool Trainer::probes_due() const {
  const int64_t interval = config_.log.probe_interval_steps;
  return interval > 0 && (state_.step + 1) % interval == 0;
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
  for (const LayerProbe& probe : probes_)
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
  const auto gather = [&](std::vector<float> losses, int64_t most) {
    losses.resize(static_cast<size_t>(most));
    return ranks_.gather(losses, "the evaluation");
  };
  for (size_t i = 0; i < scorers_.size(); ++i) {
    Perplexity p;
    try {
      p = evaluate_perplexity(*scorers_[i], *data_.val, data_.token_bytes,
                              {.length = lengths_[i],
                               .max_tokens = whole_set ? 0 : config_.eval.max_tokens,
                               .reset_at_documents = config_.data.reset_at_documents,
                               .share = {ranks_.rank(), ranks_.size(), gather}},
                              [&](int64_t done, int64_t total) {
                                if (stop_agreed()) throw Interrupted();
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
  const auto start = Clock::now();
  train_step();
  return seconds_since(start);
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

HostMirror& Trainer::weights_mirror() {
  if (!weights_mirror_) weights_mirror_.emplace(runtime_.context, weights_.master);
  return *weights_mirror_;
}

void Trainer::pull_tensors() {
  if (ranks_.root()) weights_mirror().pull();
  optimizer_.pull();
}

void Trainer::push_tensors() {
  if (ranks_.root()) weights_mirror().push();
  ranks_.broadcast(weights_.master);
  refresh_compute_copy(runtime_.context, weights_);
  optimizer_.push();
}

std::vector<NamedView> Trainer::model_tensors() {
  return named_views(model_.parameters(), weights_mirror().host());
}

std::vector<NamedView> Trainer::optimizer_tensors() {
  return optimizer_.tensors();
}

}  // namespace kla
