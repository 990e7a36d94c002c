// Finite differences of the mixer on the reference: prep, scan and gated norm in one loss, so that
// the derivative of T_zero (a cache of k and beta) is part of what is checked; every rule, gate and
// factor, state and convolution tail carried, documents reset.
#include <gtest/gtest.h>

#include "tests/support/gradients.h"
#include "tests/support/mixer_case.h"

namespace kla::testing {
namespace {

const std::set<std::string> kAdded{"q_conv", "k_conv", "v_conv", "b_bias",
                                   "a_log",  "a_bias", "theta",  "norm_weight"};
constexpr DeltaShape kTiny{.B = 2, .T = 7, .H = 2, .K = 3, .V = 4, .C = 4};

void expect_mixer_gradients(MixerCase c, const std::string& what) {
  const auto run = [&](bool backward) {
    return execute(Device::reference, [&](Lab& lab) { run_mixer(lab, c, backward); });
  };
  const auto loss = [&] {
    const Results r = run(false);
    return dot(r.at("y"), c["dy"]) + dot(r.at("S_final"), c["dS_final"]);
  };
  expect_gradients(run(true), c.inputs, loss, kAdded, what);
}

TEST(MixerGradient, EveryRule) {
  for (int rule = 0; rule < kRuleCount; ++rule)
    expect_mixer_gradients(draw_mixer(kTiny, {.rule = rule}), std::string(rule_info(rule).name));
}

TEST(MixerGradient, EveryRuleCarriedWithResets) {
  for (int rule = 0; rule < kRuleCount; ++rule) {
    MixerCase c = draw_mixer(kTiny, {.rule = rule, .carried = true});
    c.inputs["reset"] = {0, 0, 1, 0, 0, 0, 1, 0, 1, 1, 0, 1, 0, 0};
    expect_mixer_gradients(c, std::string(rule_info(rule).name) + " carried, resets");
  }
}

TEST(MixerGradient, EveryGateAndFactor) {
  for (DecayGate decay : {DecayGate::dual_mamba, DecayGate::dual_logsigmoid, DecayGate::single})
    for (SeqFactor factor :
         {SeqFactor::none, SeqFactor::inv_t, SeqFactor::inv_sqrt_t, SeqFactor::inv_log_t}) {
      const MixerDraw draw{.decay = decay, .factor = factor, .carried = true};
      expect_mixer_gradients(draw_mixer(kTiny, draw),
                             "gate " + std::to_string(static_cast<int>(decay)) + ", factor " +
                                 std::to_string(static_cast<int>(factor)));
    }
}

TEST(MixerGradient, StrongDecay) {
  expect_mixer_gradients(draw_mixer(kTiny, {.strong = true, .carried = true}), "strong decay");
}

TEST(MixerGradient, ShortSequences) {
  for (int64_t T : {1, 2, 3, 4}) {
    DeltaShape s = kTiny;
    s.T = T;
    expect_mixer_gradients(draw_mixer(s, {.carried = true}), "T = " + std::to_string(T));
  }
}

// Where the single gate is clamped (1 - eta below 1e-6), the gate passes no gradient.
TEST(MixerGradient, SingleGateClamped) {
  MixerCase c = draw_mixer(kTiny, {.decay = DecayGate::single});
  for (size_t i = 0; i < c.inputs["b"].size(); i += 3) c.inputs["b"][i] = 18;
  expect_mixer_gradients(c, "single gate, clamped");
}

// Outputs of prep, one by one, with its own backward: catches errors that cancel in the mixer.
TEST(PrepGradient, EveryRule) {
  for (int rule = 0; rule < kRuleCount; ++rule) {
    MixerCase c = draw_mixer(kTiny, {.rule = rule, .carried = true});
    c.inputs["reset"] = {0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0};
    const auto& [B, T, H, K, V, C] = c.shape;
    const Values dq = uniform("dq", B * T * H * K), dk = uniform("dk", B * T * H * K),
                 dv = uniform("dv", B * T * H * V), dbeta = uniform("dbeta", B * T * H),
                 dg = uniform("dg", B * T * H);
    const auto program = [&](Lab& lab) {
      const MixerPrepForward prep = prep_forward(lab, c);
      lab.keep("q_hat", prep.q_hat);
      lab.keep("k_hat", prep.k_hat);
      lab.keep("v_hat", prep.v_hat);
      lab.keep("beta", prep.beta);
      lab.keep("g", prep.g);
      prep_backward(lab, c, prep,
                    {{"dq", lab.compute(dq, {B, T, H, K})},
                     {"dk", lab.compute(dk, {B, T, H, K})},
                     {"dv", lab.compute(dv, {B, T, H, V})},
                     {"dbeta", lab.acc(dbeta, {B, T, H})},
                     {"dg", lab.acc(dg, {B, T, H})}});
    };
    const auto loss = [&](const Results& r) {
      return dot(r.at("q_hat"), dq) + dot(r.at("k_hat"), dk) + dot(r.at("v_hat"), dv) +
             dot(r.at("beta"), dbeta) + dot(r.at("g"), dg);
    };
    expect_program_gradients(c.inputs, program, loss, kAdded, std::string(rule_info(rule).name));
  }
}

}  // namespace
}  // namespace kla::testing
