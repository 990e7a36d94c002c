#include "eval/mixer_check.h"

#include <algorithm>
#include <cmath>

#include "core/device.h"
#include "core/error.h"

namespace kla {
namespace {

using Values = std::vector<double>;

// Root mean square of x - reference over that of the reference, or alone if the reference is zero.
double relative_rms(const Values& x, const Values& reference) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    difference += (x[i] - reference[i]) * (x[i] - reference[i]);
    norm += reference[i] * reference[i];
  }
  return std::sqrt(norm > 0 ? difference / norm
                            : difference / static_cast<double>(reference.size()));
}

// std::max loses a NaN; this keeps it.
double larger(double a, double b) {
  return std::isnan(a) || a > b ? a : b;
}

// What a mixer makes of one text: o [1,T,H,V] and the state behind it [1,H,V,K].
struct Result {
  View o, S;
};
struct HostResult {
  Values o, S;
  HostResult(const Context& context, const Result& r)
      : o(host_values(context, r.o)), S(host_values(context, r.S)) {}
};

double difference(const HostResult& x, const HostResult& reference) {
  return larger(relative_rms(x.o, reference.o), relative_rms(x.S, reference.S));
}

// Rows [1,1,*] of token t in a view of [1,T,*].
View token_of(const View& view, int64_t t) {
  if (view.empty()) return view;
  View one = view;
  one.shape[1] = 1;
  const int64_t bytes = view.rows() / view.dim(1) * view.stride * size_of(view.dtype);
  if (view.data) one.data = static_cast<std::byte*>(view.data) + t * bytes;
  return one;
}

// The inputs of token t; the state of the past is in `tail` and `position`.
MixerInputs token_inputs(const MixerInputs& in, int64_t t, View tail, View position) {
  MixerInputs one{.q = token_of(in.q, t),
                  .k = token_of(in.k, t),
                  .v = token_of(in.v, t),
                  .a = token_of(in.a, t),
                  .b = token_of(in.b, t),
                  .reset = {},
                  .conv_tail = tail,
                  .position = position};
  if (!in.reset.empty()) {
    one.reset = View(nullptr, DType::u8, {1, 1});
    if (in.reset.data) one.reset.data = static_cast<std::byte*>(in.reset.data) + t;
  }
  return one;
}

// The mixer as decoding runs it, from the empty state. `resets` [T] or empty: what in.reset holds.
void recurrent_mixer(Context& ctx, const MixerPrepForward& prep, double scale,
                     const std::vector<uint8_t>& resets, const Result& out) {
  const int64_t T = prep.k_hat.dim(1), H = prep.k_hat.dim(2), K = prep.k_hat.dim(3);
  const int64_t V = prep.v_hat.dim(3);
  Arena& scratch = *ctx.scratch;
  ArenaScope scope(scratch);
  MixerPrepForward one{
      .q_hat = scratch.allocate(ctx.compute, {1, 1, H, K}),
      .k_hat = scratch.allocate(ctx.compute, {1, 1, H, K}),
      .v_hat = scratch.allocate(ctx.compute, {1, 1, H, V}),
      .beta = scratch.allocate(ctx.accumulate, {1, 1, H}),
      .g = scratch.allocate(ctx.accumulate, {1, 1, H}),
      .T_zero = {},
      .conv_tail_out = scratch.allocate(ctx.accumulate, {1, kConvTail, 2 * H * K + H * V}),
      .position_out = scratch.allocate(DType::i64, {1}),
      .in = {},
      .w = prep.w,
      .options = prep.options};
  for (const View& view : {one.conv_tail_out, one.position_out, out.S}) zero_fill(ctx, view);
  for (int64_t t = 0; t < T; ++t) {
    if (!resets.empty() && resets[static_cast<size_t>(t)]) zero_fill(ctx, out.S);
    one.in = token_inputs(prep.in, t, one.conv_tail_out, one.position_out);
    ops::mixer_prep_forward(ctx, one);
    ops::delta_step(ctx, {.o = token_of(out.o, t).reshape({1, H, V}),
                          .S = out.S,
                          .q = one.q_hat.reshape({1, H, K}),
                          .k = one.k_hat.reshape({1, H, K}),
                          .v = one.v_hat.reshape({1, H, V}),
                          .beta = one.beta.reshape({1, H}),
                          .g = one.g.reshape({1, H}),
                          .scale = scale});
  }
}

// The same mixer on the reference device, fed with the values of the device's tensors.
class ReferenceMixer {
 public:
  ReferenceMixer(const Context& device, const MixerPrepForward& prep, double scale,
                 const std::vector<uint8_t>& resets)
      : runtime_(Device::reference, 1), device_(device), theirs_(prep), scale_(scale) {
    runtime_.set_up([&] { allocate(); }, [&] { compute(resets); });
    compute(resets);
  }

  HostResult chunkwise() const { return {runtime_.context, chunkwise_}; }
  HostResult recurrent() const { return {runtime_.context, recurrent_}; }

 private:
  // A dense view in double with the shape and, once there is memory, the values of `theirs`.
  View copy_of(const View& theirs) {
    if (theirs.empty()) return theirs;
    View mine = arena().allocate(DType::f64, {theirs.size()});
    mine.rank = theirs.rank;
    mine.shape = theirs.shape;
    mine.stride = theirs.cols();
    if (mine.data) {
      const Values values = host_values(device_, theirs);
      std::copy(values.begin(), values.end(), mine.as<double>());
    }
    return mine;
  }
  View copy_of_resets() {
    const View& theirs = theirs_.in.reset;
    if (theirs.empty()) return theirs;
    const View mine = arena().allocate(DType::u8, {1, theirs.size()});
    if (mine.data) download(device_, theirs, mine.data);
    return mine;
  }
  MixerPrepParameters copy_of(MixerPrepParameters w) {
    for (View* view : {&w.q_conv, &w.k_conv, &w.v_conv, &w.b_bias, &w.a_log, &w.a_bias, &w.theta})
      *view = copy_of(*view);
    return w;
  }
  Result result() { return {fresh({1, T_, H_, V_}), fresh({1, H_, V_, K_})}; }
  View fresh(std::initializer_list<int64_t> dims) { return arena().allocate(DType::f64, dims); }
  Arena& arena() { return runtime_.memory["check"]; }

  void allocate() {
    const MixerInputs& in = theirs_.in;
    prep_ = {.q_hat = fresh({1, T_, H_, K_}),
             .k_hat = fresh({1, T_, H_, K_}),
             .v_hat = fresh({1, T_, H_, V_}),
             .beta = fresh({1, T_, H_}),
             .g = fresh({1, T_, H_}),
             .T_zero = fresh({1, chunk_count(T_), H_, kChunk, kChunk}),
             .conv_tail_out = {},
             .position_out = {},
             .in = {.q = copy_of(in.q),
                    .k = copy_of(in.k),
                    .v = copy_of(in.v),
                    .a = copy_of(in.a),
                    .b = copy_of(in.b),
                    .reset = copy_of_resets(),
                    .conv_tail = {},
                    .position = {}},
             .w = copy_of(theirs_.w),
             .options = theirs_.options};
    chunkwise_ = result();
    recurrent_ = result();
  }

  void compute(const std::vector<uint8_t>& resets) {
    ops::mixer_prep_forward(runtime_.context, prep_);
    ops::delta_scan_forward(runtime_.context, {.o = chunkwise_.o,
                                               .S_enter = {},
                                               .S_final = chunkwise_.S,
                                               .S_initial = {},
                                               .in = {.q = prep_.q_hat,
                                                      .k = prep_.k_hat,
                                                      .v = prep_.v_hat,
                                                      .beta = prep_.beta,
                                                      .g = prep_.g,
                                                      .T_zero = prep_.T_zero,
                                                      .reset = prep_.in.reset,
                                                      .scale = scale_}});
    recurrent_mixer(runtime_.context, prep_, scale_, resets, recurrent_);
  }

  Runtime runtime_;
  const Context& device_;
  const MixerPrepForward& theirs_;
  double scale_;
  int64_t T_ = theirs_.k_hat.dim(1), H_ = theirs_.k_hat.dim(2), K_ = theirs_.k_hat.dim(3);
  int64_t V_ = theirs_.v_hat.dim(3);
  MixerPrepForward prep_;
  Result chunkwise_, recurrent_;
};

}  // namespace

CheckBounds check_bounds(DType compute) {
  constexpr double kDouble = 1e-10;
  if (compute == DType::f64) return {kDouble, kDouble, kDouble};
  if (compute == DType::f32) return {1e-5, 1e-4, kDouble};
  return {2e-2, 2e-2, kDouble};
}

double worst_ratio(const LayerCheck& c, const CheckBounds& bounds) {
  return larger(larger(c.chunkwise / bounds.device, c.recurrent / bounds.device),
                larger(c.between / bounds.between, c.definition / bounds.definition));
}

MixerCheck::MixerCheck(Runtime& runtime, LanguageModel& model, const Weights& weights,
                       int64_t layers, int64_t tokens)
    : runtime_(runtime), model_(model), weights_(weights), layers_(layers), T_(tokens) {
  KLA_CHECK(tokens >= 2, "one token takes the recurrent form");
  Arena& arena = runtime.memory["check"];
  state_ = model.allocate_state(runtime.context, arena, 1);
  tokens_ = arena.allocate(DType::i32, {T_});
  targets_ = arena.allocate(DType::i32, {T_});
  reset_ = arena.allocate(DType::u8, {1, T_});
  losses_ = arena.allocate(runtime.context.accumulate, {T_});
}

void MixerCheck::plan() {
  for (bool resets : {false, true}) forward(resets);
}

std::vector<LayerCheck> MixerCheck::run(const std::vector<int32_t>& tokens,
                                        const std::vector<uint8_t>& reset) {
  KLA_CHECK(static_cast<int64_t>(tokens.size()) == T_, "another number of tokens");
  const Context& ctx = runtime_.context;
  const std::vector<int32_t> no_targets(tokens.size(), -1);
  upload(ctx, tokens_, tokens.data());
  upload(ctx, targets_, no_targets.data());
  if (!reset.empty()) upload(ctx, reset_, reset.data());
  resets_ = reset;
  found_.clear();
  forward(!reset.empty());
  return found_;
}

void MixerCheck::forward(bool resets) {
  LanguageModel::clear(runtime_.context, state_);
  const MixerTap tap(runtime_.context, layers_,
                     [&](int64_t layer, const MixerPrepForward& prep,
                         const DeltaScanForward& scan) { compare(layer, prep, scan); });
  model_.loss_from(runtime_.context, weights_,
                   {{1, T_, resets ? reset_ : View()}, tokens_, targets_}, state_, losses_);
}

// The forward pass stands still behind this layer's scan: o and the final state are there, and the
// recurrent form is run on the same inputs in the scratch memory that is left.
void MixerCheck::compare(int64_t layer, const MixerPrepForward& prep,
                         const DeltaScanForward& scan) {
  Context& ctx = runtime_.context;
  ArenaScope scope(*ctx.scratch);
  const View S = scan.S_final;
  const Result by_token{
      ctx.scratch->allocate(scan.o.dtype, {1, scan.o.dim(1), scan.o.dim(2), scan.o.dim(3)}),
      ctx.scratch->allocate(S.dtype, {1, S.dim(1), S.dim(2), S.dim(3)})};
  recurrent_mixer(ctx, prep, scan.in.scale, resets_, by_token);
  if (ctx.dry_run) return;
  const HostResult chunkwise(ctx, {scan.o, S}), recurrent(ctx, by_token);
  const ReferenceMixer reference(ctx, prep, scan.in.scale, resets_);
  const HostResult exact = reference.chunkwise();
  found_.push_back({.layer = layer,
                    .chunkwise = difference(chunkwise, exact),
                    .recurrent = difference(recurrent, exact),
                    .between = difference(chunkwise, recurrent),
                    .definition = difference(reference.recurrent(), exact)});
}

}  // namespace kla
