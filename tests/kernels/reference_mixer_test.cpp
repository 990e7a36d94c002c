// The reference's mixer, prep and scan together: finite differences for every rule and gate,
// documents that must not see each other, and calls that continue each other.
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "tests/kernels/reference_bench.h"

namespace kla::reference {
namespace {

struct MixerTest {
  static constexpr int64_t B = 2, H = 2, K = 4, V = 3, C = 4;
  Bench bench;
  int64_t T;
  MixerInputs in;
  MixerPrepParameters w;
  MixerOptions options;
  View q, k, v, beta, g, T_zero, S_enter, o, S_initial, S_final, tail_out, position_out;
  View wide, ab, dout, dS_final;

  MixerTest(int64_t tokens, bool with_resets) : T(tokens) {
    const int64_t NC = chunk_count(T, C), dims = 2 * H * K + H * V;
    wide = bench.random({B * T, dims + 5}, -1.5, 1.5);
    ab = bench.random({B * T, 2 * H}, -1.5, 1.5);
    in = {.q = wide.columns(1, H * K).reshape({B, T, H * K}),
          .k = wide.columns(1 + H * K, H * K).reshape({B, T, H * K}),
          .v = wide.columns(1 + 2 * H * K, H * V).reshape({B, T, H * V}),
          .a = ab.columns(0, H).reshape({B, T, H}),
          .b = ab.columns(H, H).reshape({B, T, H}),
          .reset = with_resets ? bench.flags({B, T}, {2, T, T + 5}) : View(),
          .conv_tail = bench.random({B, kConvTail, dims}),
          .position = bench.positions({0, 41})};
    w = {.q_conv = bench.random({H * K, 4}),
         .k_conv = bench.random({H * K, 4}),
         .v_conv = bench.random({H * V, 4}),
         .b_bias = bench.random({H}),
         .a_log = bench.random({H}),
         .a_bias = bench.random({H}),
         .theta = bench.random({1})};
    q = bench.fresh({B, T, H, K});
    k = bench.fresh({B, T, H, K});
    v = bench.fresh({B, T, H, V});
    beta = bench.fresh({B, T, H});
    g = bench.fresh({B, T, H});
    T_zero = bench.fresh({B, NC, H, C, C});
    S_enter = bench.fresh({B, NC, H, V, K});
    o = bench.fresh({B, T, H, V});
    S_initial = bench.random({B, H, V, K});
    S_final = bench.fresh({B, H, V, K});
    tail_out = bench.fresh({B, kConvTail, dims});
    position_out = bench.positions({0, 0});
    dout = bench.random({B, T, H, V});
    dS_final = bench.random({B, H, V, K});
    options.eps = 1e-2;
  }
  DeltaInputs delta() const {
    return {.q = q,
            .k = k,
            .v = v,
            .beta = beta,
            .g = g,
            .T_zero = T_zero,
            .reset = in.reset,
            .scale = 0.5};
  }
  double forward() {
    ops::mixer_prep_forward(bench.context, {.q_hat = q,
                                            .k_hat = k,
                                            .v_hat = v,
                                            .beta = beta,
                                            .g = g,
                                            .T_zero = T_zero,
                                            .conv_tail_out = tail_out,
                                            .position_out = position_out,
                                            .in = in,
                                            .w = w,
                                            .options = options});
    ops::delta_scan_forward(
        bench.context,
        {.o = o, .S_enter = S_enter, .S_final = S_final, .S_initial = S_initial, .in = delta()});
    return inner(o, dout) + inner(S_final, dS_final);
  }
};

std::vector<Gradient> gradients(MixerTest& t) {
  Bench& bench = t.bench;
  const int64_t B = t.B, T = t.T, H = t.H, K = t.K, V = t.V, dims = 2 * H * K + H * V;
  t.forward();
  const View dS = bench.fresh({B, chunk_count(T, t.C), H, V, K});
  const View dS_initial = bench.fresh({B, H, V, K});
  const View dq = bench.fresh({B, T, H, K}), dk = bench.fresh({B, T, H, K});
  const View dv = bench.fresh({B, T, H, V});
  const View dbeta = bench.fresh({B, T, H}), dg = bench.fresh({B, T, H});
  ops::delta_reverse_scan(bench.context, {.dS_leave = dS,
                                          .dS_initial = dS_initial,
                                          .dS_final = t.dS_final,
                                          .dout = t.dout,
                                          .in = t.delta()});
  ops::delta_chunk_backward(bench.context, {.dq = dq,
                                            .dk = dk,
                                            .dv = dv,
                                            .dbeta = dbeta,
                                            .dg = dg,
                                            .dout = t.dout,
                                            .S_enter = t.S_enter,
                                            .dS_leave = dS,
                                            .in = t.delta()});
  const View dwide = bench.fresh({B * T, dims + 5});
  fill(matrix<double>(dwide.columns(0, 1)), 0.0);  // beside what the op writes
  fill(matrix<double>(dwide.columns(1 + dims, 4)), 0.0);
  const View dab = bench.fresh({B * T, 2 * H});
  const MixerPrepParameters dw{.q_conv = bench.ones({H * K, 4}),
                               .k_conv = bench.ones({H * K, 4}),
                               .v_conv = bench.ones({H * V, 4}),
                               .b_bias = bench.ones({H}),
                               .a_log = bench.ones({H}),
                               .a_bias = bench.ones({H}),
                               .theta = bench.ones({1})};
  ops::mixer_prep_backward(bench.context,
                           {.dq = dwide.columns(1, H * K).reshape({B, T, H * K}),
                            .dk = dwide.columns(1 + H * K, H * K).reshape({B, T, H * K}),
                            .dv = dwide.columns(1 + 2 * H * K, H * V).reshape({B, T, H * V}),
                            .da = dab.columns(0, H).reshape({B, T, H}),
                            .db = dab.columns(H, H).reshape({B, T, H}),
                            .dw = dw,
                            .dq_hat = dq,
                            .dk_hat = dk,
                            .dv_hat = dv,
                            .dbeta = dbeta,
                            .dg = dg,
                            .in = t.in,
                            .w = t.w,
                            .options = t.options});
  return {{"q, k, v", t.wide, dwide},           {"a, b", t.ab, dab},
          {"q_conv", t.w.q_conv, dw.q_conv, 1}, {"k_conv", t.w.k_conv, dw.k_conv, 1},
          {"v_conv", t.w.v_conv, dw.v_conv, 1}, {"b_bias", t.w.b_bias, dw.b_bias, 1},
          {"a_log", t.w.a_log, dw.a_log, 1},    {"a_bias", t.w.a_bias, dw.a_bias, 1},
          {"theta", t.w.theta, dw.theta, 1},    {"S", t.S_initial, dS_initial}};
}

void check_mixer(int rule, DecayGate decay, SeqFactor factor, bool with_resets) {
  MixerTest t(11, with_resets);
  t.options.rule = rule;
  t.options.decay = decay;
  t.options.factor = factor;
  check_gradients(
      t.bench, [&] { return t.forward(); }, gradients(t),
      std::string(rule_info(rule).name) + ", gate " + std::to_string(static_cast<int>(decay)) +
          ", factor " + std::to_string(static_cast<int>(factor)) + (with_resets ? ", resets" : ""));
}

TEST(Mixer, FiniteDifferencesOfEveryRuleAndGate) {
  for (int rule = 0; rule < kRuleCount; ++rule)
    for (DecayGate gate : {DecayGate::dual_mamba, DecayGate::dual_logsigmoid, DecayGate::single})
      for (bool resets : {false, true}) check_mixer(rule, gate, SeqFactor::none, resets);
  for (SeqFactor factor : {SeqFactor::inv_t, SeqFactor::inv_sqrt_t, SeqFactor::inv_log_t})
    check_mixer(find_rule("kla"), DecayGate::dual_mamba, factor, true);
}

TEST(Mixer, ADryRunPlansTheScratch) {
  MixerTest t(11, true);
  Arena plan("scratch");
  t.bench.context.scratch = &plan;
  t.bench.context.dry_run = true;
  gradients(t);
  EXPECT_GT(plan.high_water(), 0);
  EXPECT_EQ(plan.used(), 0);
  EXPECT_TRUE(std::isnan(t.o.as<double>()[0])) << "a dry run touches no memory";
  Arena exact("scratch", plan.high_water());
  t.bench.context.scratch = &exact;
  t.bench.context.dry_run = false;
  gradients(t);
  EXPECT_EQ(exact.high_water(), plan.high_water());
}

// Everything about a document is the same bits, whatever stands before it.
TEST(Mixer, NoBitCrossesAReset) {
  for (int64_t start : {0, 3, 4, 6, 10}) {
    MixerTest t(11, true);
    t.in.reset = t.bench.flags({t.B, t.T}, {start, t.T + start});
    t.options.factor = SeqFactor::inv_t;
    auto later = [&] {
      std::vector<double> values;
      for (const View& o : {t.o, t.g, t.beta})
        for (int64_t b = 0; b < t.B; ++b) {
          const double* row = o.as<double>() + b * t.T * o.size() / (t.B * t.T);
          const int64_t width = o.size() / (t.B * t.T);
          values.insert(values.end(), row + start * width, row + t.T * width);
        }
      const double* S = t.S_final.as<double>();
      values.insert(values.end(), S, S + t.S_final.size());
      const double* tail = t.tail_out.as<double>();
      values.insert(values.end(), tail, tail + t.tail_out.size());
      for (int64_t b = 0; b < t.B; ++b)
        values.push_back(static_cast<double>(t.position_out.as<int64_t>()[b]));
      return values;
    };
    t.forward();
    const std::vector<double> before = later();
    const View other = t.bench.random({t.B * t.T, t.wide.cols()}, -9, 9);
    const View other_gates = t.bench.random({t.B * t.T, t.ab.cols()}, -9, 9);
    for (int64_t b = 0; b < t.B; ++b) {
      const int64_t first = b * t.T;
      std::copy_n(other.as<double>() + first * other.cols(), start * other.cols(),
                  t.wide.as<double>() + first * other.cols());
      std::copy_n(other_gates.as<double>() + first * t.ab.cols(), start * t.ab.cols(),
                  t.ab.as<double>() + first * t.ab.cols());
    }
    t.S_initial = t.bench.random({t.B, t.H, t.V, t.K});
    t.in.conv_tail = t.bench.random({t.B, kConvTail, t.tail_out.cols()});
    t.in.position = t.bench.positions({7, 5});
    t.forward();
    const std::vector<double> after = later();
    EXPECT_EQ(0, std::memcmp(before.data(), after.data(), before.size() * sizeof(double)))
        << "reset at " << start;
  }
}

// The tokens first .. first + to.T of `whole`, with its parameters.
void take_tokens(MixerTest& to, const MixerTest& whole, int64_t first) {
  to.w = whole.w;
  to.options = whole.options;
  if (to.T == 0) return;
  for (int64_t b = 0; b < to.B; ++b) {
    const int64_t from = b * whole.T + first, at = b * to.T;
    copy(matrix<double>(to.wide.row_range(at, to.T)),
         matrix<double>(whole.wide.row_range(from, to.T)));
    copy(matrix<double>(to.ab.row_range(at, to.T)), matrix<double>(whole.ab.row_range(from, to.T)));
    if (!whole.in.reset.empty())
      std::copy_n(whole.in.reset.as<uint8_t>() + from, to.T, to.in.reset.as<uint8_t>() + at);
  }
}

// Two calls that hand over tail, position and state, in place, equal one.
TEST(Mixer, CallsContinueEachOther) {
  for (bool with_resets : {false, true})
    for (int64_t first : {0, 1, 2, 5, 8, 11}) {
      MixerTest whole(11, with_resets);
      whole.options.factor = SeqFactor::inv_sqrt_t;
      MixerTest head(first, false), tail(11 - first, false);
      for (MixerTest* part : {&head, &tail})
        if (with_resets) part->in.reset = part->bench.flags({part->B, part->T}, {});
      take_tokens(head, whole, 0);
      take_tokens(tail, whole, first);
      for (MixerTest* part : {&head, &tail}) {  // both work on the memory of `head`
        part->tail_out = part->in.conv_tail = head.in.conv_tail;
        part->position_out = part->in.position = head.in.position;
        part->S_final = part->S_initial = head.S_initial;
      }
      copy(matrix<double>(head.S_initial), matrix<double>(whole.S_initial));
      copy(matrix<double>(head.in.conv_tail), matrix<double>(whole.in.conv_tail));
      whole.forward();
      head.forward();
      tail.forward();
      EXPECT_LT(difference(head.S_final, whole.S_final), 1e-12) << first;
      EXPECT_EQ(difference(head.tail_out, whole.tail_out), 0) << first;
      for (int64_t b = 0; b < whole.B; ++b)
        EXPECT_EQ(head.position_out.as<int64_t>()[b], whole.position_out.as<int64_t>()[b]);
    }
}

}  // namespace
}  // namespace kla::reference
