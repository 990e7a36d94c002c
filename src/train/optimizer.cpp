#include "train/optimizer.h"

#include <algorithm>
#include <cmath>

#include "train/checkpoint.h"

namespace kla {
namespace {

int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// What of the segments lies in [first, first + count), counted from `first`.
std::vector<AdamwSegment> cut(const std::vector<AdamwSegment>& segments, int64_t first,
                              int64_t count) {
  std::vector<AdamwSegment> inside;
  for (AdamwSegment s : segments) {
    const int64_t from = std::max(s.first, first);
    const int64_t to = std::min(s.first + s.count, first + count);
    if (from >= to) continue;
    s.first = from - first;
    s.count = to - from;
    inside.push_back(s);
  }
  return inside;
}

}  // namespace

Partition::Partition(int64_t n, int ranks, bool strict) {
  constexpr int64_t kAlignment = 64;  // elements: whole cache lines, also of bf16
  if (strict) {
    const int64_t block = round_up((n + kStrictBlocks - 1) / kStrictBlocks, kAlignment);
    norm_blocks = kStrictBlocks / ranks;
    slice = norm_blocks * block;
  } else {
    norm_blocks = 1;
    slice = ranks == 1 ? n : round_up((n + ranks - 1) / ranks, kAlignment);
  }
  flat_size = slice * ranks;
}

Optimizer::Optimizer(const Config& config, const ParameterTable& table, Communicator& ranks)
    : config_(config.optim),
      max_norm_(config.train.grad_clip),
      table_(table),
      ranks_(ranks),
      partition_(table.flat_size(), ranks.size(), config.device.deterministic == "strict"),
      segments_(cut(table.segments(config.optim.decay == "all"), ranks.rank() * partition_.slice,
                    partition_.slice)) {}

void Optimizer::allocate(Runtime& runtime) {
  context_ = &runtime.context;
  const DType acc = runtime.context.accumulate;
  Arena& memory = runtime.memory["optimizer"];
  m_.slice = memory.allocate(acc, {partition_.slice});
  v_.slice = memory.allocate(acc, {partition_.slice});
  norm_ = memory.allocate(DType::f64, {1});
  block_norms_ = memory.allocate(DType::f64, {partition_.norm_blocks});
}

void Optimizer::reset(const Context& context) {
  zero_fill(context, m_.slice);
  zero_fill(context, v_.slice);
}

double Optimizer::sum_gradients(Context& context, View gradients) {
  if (!context.dry_run) ranks_.reduce_scatter(gradients);
  const int64_t block = partition_.slice / partition_.norm_blocks;
  const View mine = gradients.elements(ranks_.rank() * partition_.slice, partition_.slice);
  for (int64_t b = 0; b < partition_.norm_blocks; ++b)
    ops::grad_norm(context,
                   {.norm = block_norms_.elements(b, 1), .g = mine.elements(b * block, block)});
  if (context.dry_run) return 0;
  const std::vector<double> norms =
      ranks_.gather(downloaded<double>(context, block_norms_), "the gradient norm");
  double norm = norms[0];
  if (norms.size() > 1) {
    double squares = 0;
    for (double x : norms) squares += x * x;
    norm = std::sqrt(squares);
  }
  upload(context, norm_, &norm);
  return norm;
}

void Optimizer::update(Context& context, const Weights& weights, View gradients, double lr,
                       int64_t t) {
  const auto mine = [&](View all) {
    return all.empty() ? all : all.elements(ranks_.rank() * partition_.slice, partition_.slice);
  };
  ops::adamw(context, {.w = mine(weights.master),
                       .m = m_.slice,
                       .v = v_.slice,
                       .copy = mine(weights.second_copy()),
                       .g = mine(gradients),
                       .norm = norm_,
                       .segments = segments_.data(),
                       .segment_count = static_cast<int64_t>(segments_.size()),
                       .lr = lr,
                       .beta1 = config_.betas[0],
                       .beta2 = config_.betas[1],
                       .eps = config_.eps,
                       .weight_decay = config_.weight_decay,
                       .max_norm = max_norm_,
                       .step = t});
  if (context.dry_run || ranks_.size() == 1) return;
  ranks_.all_gather(weights.master);
  if (!weights.second_copy().empty()) ranks_.all_gather(weights.second_copy());
}

// ------------------------------------------------------------------------------------ checkpoints

void Optimizer::make_mirrors() {
  for (Moment* moment : {&m_, &v_}) {
    if (moment->mirror) continue;
    moment->mirror.emplace(*context_, moment->slice);
    if (ranks_.size() > 1 && ranks_.root())
      moment->gathered.resize(static_cast<size_t>(moment->slice.bytes() * ranks_.size()));
  }
}

View Optimizer::whole(Moment& moment) {
  make_mirrors();
  if (ranks_.size() == 1) return moment.mirror->host();
  return View(moment.gathered.data(), moment.slice.dtype, {partition_.flat_size});
}

void Optimizer::pull() {
  for (Moment* moment : {&m_, &v_}) {
    const View all = whole(*moment);
    moment->mirror->pull();
    if (ranks_.size() > 1)
      ranks_.collect(moment->mirror->host(), all, "the gathering of the optimizer state");
  }
}

void Optimizer::push() {
  for (Moment* moment : {&m_, &v_}) {
    const View all = whole(*moment);
    if (ranks_.size() > 1)
      ranks_.distribute(all, moment->mirror->host(), "the handing out of the optimizer state");
    moment->mirror->push();
  }
}

std::vector<NamedView> Optimizer::tensors() {
  std::vector<NamedView> tensors = named_views(table_, whole(m_), "exp_avg.");
  for (NamedView& view : named_views(table_, whole(v_), "exp_avg_sq."))
    tensors.push_back(std::move(view));
  return tensors;
}

}  // namespace kla
