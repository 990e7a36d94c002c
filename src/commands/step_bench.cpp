#include "commands/step_bench.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "core/clock.h"
#include "core/device.h"
#include "core/error.h"
#include "core/philox.h"
#include "model/language_model.h"
#include "model/runtime.h"

namespace kla {
namespace {

constexpr int64_t kDecodeSteps = 16;  // for every repeat

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Adds up the time of every op called, by op and shape; each is waited for.
class StepProfile final : public OpObserver {
 public:
  explicit StepProfile(DeviceServices& services) : services_(services) {}

  void begin(const OpBase& op, const void* args) override {
    OpCost cost = cost_of(op, args);
    const auto [place, fresh] =
        index_.try_emplace(std::string(op.name()) + " " + cost.shape, ops_.size());
    current_ = place->second;
    if (fresh) {
      ops_.push_back({.op = op.name(), .cost = std::move(cost)});
      step_.push_back({});
    }
    ++step_[current_].calls;
    services_.synchronize();  // for what came between two ops, such as clearing gradients
    start_ = Clock::now();
  }
  void end() override {
    services_.synchronize();
    step_[current_].seconds += seconds_since(start_);
  }

  void finish_step(bool timed) {
    for (size_t i = 0; i < ops_.size(); ++i) {
      OpTiming& op = ops_[i];
      op.calls = step_[i].calls;
      if (timed) {
        op.best = op.total == 0 ? step_[i].seconds : std::min(op.best, step_[i].seconds);
        op.total += step_[i].seconds;
      }
      step_[i] = {};
    }
  }
  const std::vector<OpTiming>& ops() const { return ops_; }

 private:
  struct Step {
    int64_t calls = 0;
    double seconds = 0;
  };
  DeviceServices& services_;
  std::map<std::string, size_t> index_;
  std::vector<OpTiming> ops_;
  std::vector<Step> step_;
  size_t current_ = 0;
  Clock::time_point start_;
};

// A model in memory with made-up tokens.
class BenchModel {
 public:
  explicit BenchModel(const BenchConfig& config)
      : config_(config),
        runtime_(config.device),
        model_(config.model),
        segments_(model_.parameters().segments(true)) {}

  Context& context() { return runtime_.context; }
  ArenaSet& memory() { return runtime_.memory; }
  int64_t tokens() const { return config_.batch * config_.seq_len; }

  void set_up_training() {
    runtime_.set_up([&] { allocate_training(); }, [&] { train_step(1); });
    initialize(context(), weights_, 1);
    zero_fill(context(), m_);
    zero_fill(context(), v_);
    draw_tokens();
  }

  void train_step(int64_t t) {
    Context& ctx = context();
    zero_fill(ctx, gradients_);
    model_.forward_backward(ctx, memory()["activations"], weights_, gradients_,
                            {{config_.batch, config_.seq_len, {}}, tokens_, targets_},
                            1.0 / static_cast<double>(tokens()), losses_);
    ops::grad_norm(ctx, {.norm = norm_, .g = gradients_});
    ops::adamw(ctx, {.w = weights_.master,
                     .m = m_,
                     .v = v_,
                     .copy = weights_.second_copy(),
                     .g = gradients_,
                     .norm = norm_,
                     .segments = segments_.data(),
                     .segment_count = static_cast<int64_t>(segments_.size()),
                     .lr = 1e-4,
                     .max_norm = 1,
                     .step = t});
  }

  void set_up_decoding() {
    runtime_.set_up([&] { allocate_decoding(); },
                    [&] {
                      prefill(config_.seq_len);
                      decode();
                    });
    initialize(context(), weights_, 1);
    LanguageModel::clear(context(), state_);
    draw_tokens();
  }

  // Feeds `length` more tokens to every row.
  void prefill(int64_t length) {
    const View tokens = tokens_.reshape({1, tokens_.size()}).columns(0, config_.batch * length);
    model_.logits_from(context(), weights_, {config_.batch, length, {}},
                       tokens.reshape({config_.batch * length}), state_, logits_);
  }
  void decode() { prefill(1); }

 private:
  void allocate_training() {
    const DType acc = context().accumulate;
    const int64_t n = model_.parameters().flat_size();
    weights_ = runtime_.allocate_weights(model_.parameters());
    gradients_ = memory()["gradients"].allocate(acc, {n});
    m_ = memory()["optimizer"].allocate(acc, {n});
    v_ = memory()["optimizer"].allocate(acc, {n});
    allocate_batch();
  }
  void allocate_decoding() {
    weights_ = runtime_.allocate_weights(model_.parameters());
    allocate_batch();
    state_ = model_.allocate_state(context(), memory()["state"], config_.batch);
    logits_ =
        memory()["state"].allocate(context().accumulate, {config_.batch, model_.vocab_size()});
  }
  void allocate_batch() {
    Arena& batch = memory()["batch"];
    tokens_ = batch.allocate(DType::i32, {tokens()});
    targets_ = batch.allocate(DType::i32, {tokens()});
    losses_ = batch.allocate(context().accumulate, {tokens()});
    norm_ = batch.allocate(DType::f64, {1});
  }
  void draw_tokens() {
    const RandomStream random(1, "bench tokens");
    const double N = static_cast<double>(model_.vocab_size());
    std::vector<int32_t> inputs, targets;
    for (uint64_t i = 0; i < static_cast<uint64_t>(tokens()); ++i) {
      inputs.push_back(static_cast<int32_t>(random.uniform(2 * i, 0, N)));
      targets.push_back(static_cast<int32_t>(random.uniform(2 * i + 1, 0, N)));
    }
    upload(context(), tokens_, inputs.data());
    upload(context(), targets_, targets.data());
  }

  BenchConfig config_;
  Runtime runtime_;
  LanguageModel model_;
  std::vector<AdamwSegment> segments_;
  Weights weights_;
  View gradients_, m_, v_, tokens_, targets_, losses_, norm_, logits_;
  RecurrentState state_;
};

// The products of a step, each shape once.
std::vector<ProductTiming> products_of(const std::vector<OpTiming>& ops, int64_t elements) {
  std::map<Product, double> flops;
  for (const OpTiming& op : ops)
    for (const Product& p : op.cost.products)
      flops[affordable(p, elements)] += p.flops() * static_cast<double>(op.calls);
  std::vector<ProductTiming> products;
  for (const auto& [product, total] : flops) products.push_back({product, total, 0, 0});
  return products;
}

std::vector<Product> shapes_of(const std::vector<ProductTiming>& timings) {
  std::vector<Product> shapes;
  for (const ProductTiming& t : timings) shapes.push_back(t.product);
  return shapes;
}

// FLOP/s of all products of a step at rates given one by one.
template <class Rate>
double overall_rate(const std::vector<ProductTiming>& products, Rate&& rate) {
  double flops = 0, seconds = 0;
  for (const ProductTiming& t : products) {
    flops += t.flops;
    seconds += t.flops / rate(t);
  }
  return flops / seconds;
}

}  // namespace

double StepTimings::best_seconds() const {
  return *std::min_element(seconds.begin(), seconds.end());
}
double StepTimings::median_seconds() const {
  return median(seconds);
}

double StepTimings::product_flops() const {
  double flops = 0;
  for (const ProductTiming& t : products) flops += t.flops;
  return flops;
}

double StepTimings::sgemm_rate() const {
  return overall_rate(products, [](const ProductTiming& t) { return t.best(); });
}
double StepTimings::library_rate() const {
  return overall_rate(products, [](const ProductTiming& t) { return t.library; });
}
double StepTimings::our_rate() const {
  return overall_rate(products, [](const ProductTiming& t) { return t.ours; });
}

double StepTimings::share(OpKind kind) const {
  double sum = 0;
  for (const OpTiming& op : ops)
    if (op.cost.kind == kind) sum += op.total;
  return sum / profiled_seconds;
}

double StepTimings::limit_seconds(const OpTiming& op) const {
  const double calls = static_cast<double>(op.calls);
  return calls * std::max(op.cost.flops / sgemm_rate(), op.cost.bytes / copy_rate);
}

StepTimings time_training_steps(const BenchConfig& config) {
  BenchModel bench(config);
  bench.set_up_training();
  Context& ctx = bench.context();
  DeviceServices& services = services_of(ctx.device);
  StepProfile profile(services);
  const auto timed_step = [&](OpObserver* observer, int64_t t) {
    ctx.observer = observer;
    services.synchronize();
    const auto start = Clock::now();
    bench.train_step(t);
    services.synchronize();
    ctx.observer = nullptr;
    return seconds_since(start);
  };
  timed_step(&profile, 1);  // not counted: it touches all memory for the first time
  profile.finish_step(false);

  StepTimings result;
  result.threads = ctx.pool->threads();
  result.tokens = bench.tokens();
  result.products = products_of(profile.ops(), affordable_elements(ctx.device));
  const auto yardstick = make_yardstick(ctx, shapes_of(result.products));
  result.library = yardstick->library();
  for (ProductTiming& t : result.products) yardstick->time(t);
  for (int64_t i = 0; i < config.repeats; ++i) {
    const double profiled = timed_step(&profile, 2 * i + 2);
    profile.finish_step(true);
    result.profiled_seconds += profiled;
    // Waiting for each op costs nothing where ops run on the calling thread.
    result.seconds.push_back(services.host_memory() ? profiled : timed_step(nullptr, 2 * i + 3));
    for (ProductTiming& t : result.products) yardstick->time(t);
    result.copy_rate = std::max(result.copy_rate, yardstick->copy_rate());
  }
  result.ops = profile.ops();
  result.memory_bytes = bench.memory().total();
  result.memory_as_planned = bench.memory().as_planned();
  return result;
}

std::vector<DecodeTiming> time_decoding(const BenchConfig& config, std::vector<int64_t> positions) {
  std::sort(positions.begin(), positions.end());
  BenchModel bench(config);
  bench.set_up_decoding();
  DeviceServices& services = services_of(bench.context().device);
  std::vector<DecodeTiming> timings;
  int64_t position = 0;
  for (int64_t wanted : positions) {
    services.synchronize();
    const auto prefill_start = Clock::now();
    const int64_t prefill_first = position;
    while (position < wanted) {
      const int64_t length = std::min(config.seq_len, wanted - position);
      bench.prefill(length);
      position += length;
    }
    services.synchronize();
    const double prefill_seconds = seconds_since(prefill_start);
    const int64_t prefilled = position - prefill_first;
    // Not timed. The recording is made anew: it repeats what the last prefill left in place.
    const auto step = services.record([&bench] { bench.decode(); });
    step->replay();
    services.synchronize();
    std::vector<double> seconds;
    for (int64_t i = 0; i < kDecodeSteps * config.repeats; ++i) {
      const auto start = Clock::now();
      step->replay();
      services.synchronize();
      seconds.push_back(seconds_since(start));
    }
    timings.push_back({position, median(seconds), prefilled, prefill_seconds});
    position += 2 + kDecodeSteps * config.repeats;
  }
  return timings;
}

}  // namespace kla
