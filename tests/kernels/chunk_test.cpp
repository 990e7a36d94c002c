// Chunkwise = recurrent: the scan and its backward against the token recurrence and its sequential
// adjoint (KERNEL_MATH 1), for every chunk length, ragged ends, decay, gain and reset; and prep
// with delta_step, token by token, against the chunkwise mixer.
#include <gtest/gtest.h>

#include "tests/support/mixer_case.h"

namespace kla::testing {
namespace {

constexpr double kExact = 1e-10;  // relative RMS, double

void expect_recurrence(const DeltaProblem& p, const std::string& what) {
  const DeltaCache cache = cache_of(p);
  const Results chunkwise = execute(Device::reference, [&](Lab& lab) { run_scan(lab, p, cache); });
  expect_close(chunkwise, recurrence(p), kExact, describe(p.shape, what));
}

TEST(Scan, EqualsRecurrenceForEveryChunkAndLength) {
  for (int64_t C : {16, 32, 64, 128})
    for (int64_t T : {0, 1, 15, 63, 64, 65, 130, 150})
      expect_recurrence(
          draw_problem({.B = 2, .T = T, .H = 2, .K = 5, .V = 7, .C = C}, Decay::mixed),
          "mixed decay");
}

TEST(Scan, EqualsRecurrenceForEveryDecayGainAndCorrelation) {
  for (int64_t C : {16, 64})
    for (Decay decay : kDecays)
      for (double gain : {1.0, 2.0})
        for (double cosine : {0.0, 0.95})
          expect_recurrence(draw_problem({.B = 1, .T = 150, .H = 2, .K = 12, .V = 9, .C = C}, decay,
                                         cosine, gain),
                            "decay " + std::to_string(static_cast<int>(decay)) + ", gain " +
                                std::to_string(gain) + ", cosine " + std::to_string(cosine));
}

TEST(Scan, EqualsRecurrenceWithAResetAnywhere) {
  DeltaProblem p = draw_problem({.B = 1, .T = 40, .H = 1, .K = 4, .V = 3, .C = 16}, Decay::slow);
  for (size_t first = 0; first < 40; ++first) {
    p.reset.assign(40, 0);
    p.reset[first] = 1;
    expect_recurrence(p, "reset at " + std::to_string(first));
    if (first + 1 < 40) p.reset[first + 1] = 1;
    p.reset[(first + 17) % 40] = 1;
    expect_recurrence(p, "several resets from " + std::to_string(first));
  }
  p.reset.assign(40, 1);
  expect_recurrence(p, "reset at every token");
}

TEST(Scan, EqualsRecurrenceOnEveryDevice) {
  for (Device device : devices_under_test())
    for (Decay decay : kDecays)
      for (int64_t T : {1, 64, 150}) {
        const DeltaProblem p = draw_problem({.B = 2, .T = T, .H = 2, .K = 24, .V = 40}, decay, 0.5);
        const DeltaCache cache = cache_of(p);
        const Results results = execute(device, [&](Lab& lab) { run_scan(lab, p, cache); });
        expect_close(results, recurrence(p), 1e-4,
                     describe(p.shape, "decay " + std::to_string(static_cast<int>(decay)) + " on " +
                                           name_of(device)));
      }
}

// Nothing to decay: KERNEL_MATH 8.5.
TEST(Scan, FirstTokenWithoutStateHasNoGateGradient) {
  DeltaProblem p = draw_problem({.B = 1, .T = 20, .H = 1, .K = 4, .V = 3}, Decay::slow);
  std::fill(p.S_initial.begin(), p.S_initial.end(), 0.0);
  const DeltaCache cache = cache_of(p);
  const Results r = execute(Device::reference, [&](Lab& lab) { run_scan(lab, p, cache); });
  EXPECT_EQ(r.at("dg")[0], 0.0);
  EXPECT_NE(r.at("dg")[1], 0.0);
}

TEST(Scan, NoTokensPassTheStateOn) {
  const DeltaProblem p = draw_problem({.B = 2, .T = 0, .H = 2, .K = 4, .V = 3}, Decay::slow);
  const DeltaCache cache = cache_of(p);
  for (Device device : all_devices()) {
    const Results r = execute(device, [&](Lab& lab) { run_scan(lab, p, cache); });
    EXPECT_EQ(r.at("S_final"), p.S_initial);
    EXPECT_EQ(r.at("dS_initial"), p.dS_final);
  }
}

// Decoding: one token at a time through prep (no T_zero) and delta_step, everything carried in
// place.
void run_token_by_token(Lab& lab, const MixerCase& c) {
  const auto& [B, T, H, K, V, C] = c.shape;
  const auto zeros = [](int64_t n) { return Values(static_cast<size_t>(n), 0.0); };
  const Values none = zeros(B * H * V * K), no_tail = zeros(B * 3 * c.channels());
  const View S = lab.acc(c.has("S_initial") ? c["S_initial"] : none, {B, H, V, K});
  const View tail = lab.acc(c.has("conv_tail") ? c["conv_tail"] : no_tail, {B, 3, c.channels()});
  const View position = lab.typed(DType::i64, c.has("position") ? c["position"] : zeros(B), {B});
  Values o(static_cast<size_t>(B * T * H * V));
  for (int64_t t = 0; t < T; ++t) {
    MixerCase token = token_range(c, t, 1);
    for (const char* name : {"conv_tail", "position"}) token.inputs.erase(name);
    MixerPrepForward prep{.q_hat = lab.compute({B, 1, H, K}),
                          .k_hat = lab.compute({B, 1, H, K}),
                          .v_hat = lab.compute({B, 1, H, V}),
                          .beta = lab.acc({B, 1, H}),
                          .g = lab.acc({B, 1, H}),
                          .T_zero = View(),
                          .conv_tail_out = tail,
                          .position_out = position,
                          .in = mixer_inputs(lab, token),
                          .w = mixer_parameters(lab, token),
                          .options = c.options};
    prep.in.conv_tail = tail;
    prep.in.position = position;
    lab(ops::mixer_prep_forward, prep);
    const DeltaStep step{.o = lab.compute({B, H, V}),
                         .S = S,
                         .q = prep.q_hat.reshape({B, H, K}),
                         .k = prep.k_hat.reshape({B, H, K}),
                         .v = prep.v_hat.reshape({B, H, V}),
                         .beta = prep.beta.reshape({B, H}),
                         .g = prep.g.reshape({B, H}),
                         .scale = 1 / std::sqrt(static_cast<double>(K))};
    lab(ops::delta_step, step);
    if (lab.planning()) continue;
    const Values row = lab.read(step.o);
    for (int64_t b = 0; b < B; ++b)
      std::copy_n(row.begin() + b * H * V, H * V, o.begin() + (b * T + t) * H * V);
  }
  if (!lab.planning()) lab.results()["o"] = o;
  lab.keep("S_final", S);
  lab.keep("conv_tail", tail);
  lab.keep("position", position);
}

void expect_steps(Device device, const MixerCase& c, double bound, const std::string& what) {
  Results chunkwise = execute(device, [&](Lab& lab) { run_mixer(lab, c, false); });
  chunkwise.erase("y");
  const Results steps = execute(device, [&](Lab& lab) { run_token_by_token(lab, c); });
  expect_close(chunkwise, steps, bound, what + " on " + name_of(device));
  EXPECT_EQ(chunkwise.at("conv_tail"), steps.at("conv_tail")) << what;
  EXPECT_EQ(chunkwise.at("position"), steps.at("position")) << what;
}

TEST(Steps, EqualChunkwiseForEveryRuleAndChunk) {
  for (int rule = 0; rule < kRuleCount; ++rule)
    for (bool strong : {false, true})
      for (int64_t C : {16, 32, 64, 128}) {
        const DeltaShape s{.B = 2, .T = 140, .H = 2, .K = 6, .V = 5, .C = C};
        expect_steps(Device::reference,
                     draw_mixer(s, {.rule = rule, .strong = strong, .carried = true}), kExact,
                     std::string(rule_info(rule).name) + ", C " + std::to_string(C));
      }
}

TEST(Steps, EqualChunkwiseOnEveryDevice) {
  for (Device device : devices_under_test())
    for (int rule = 0; rule < kRuleCount; ++rule)
      for (int64_t T : {1, 3, 64, 130})
        expect_steps(device, draw_mixer({.B = 2, .T = T, .H = 2, .K = 16, .V = 24}, {.rule = rule}),
                     1e-4, std::string(rule_info(rule).name) + ", T " + std::to_string(T));
}

// Rules of bounded gain take keys of any size; the others would overflow by nature.
TEST(Steps, KeysOfAnySizeForRulesOfBoundedGain) {
  for (int rule = 0; rule < kRuleCount; ++rule) {
    if (!rule_info(rule).stable()) continue;
    for (double key_scale : {0.0, 1e-15, 1e-3, 1e2, 1e15}) {
      MixerCase c = draw_mixer({.B = 1, .T = 70, .H = 2, .K = 6, .V = 5}, {.rule = rule});
      for (double& x : c.inputs["k"]) x = to_f32(x * key_scale);
      const std::string what =
          std::string(rule_info(rule).name) + ", keys times " + std::to_string(key_scale);
      expect_steps(Device::reference, c, kExact, what);
      const auto whole = [&](Lab& lab) { run_mixer(lab, c); };
      expect_finite(execute(Device::reference, whole), what);
      for (Device device : devices_under_test()) expect_finite(execute(device, whole), what);
    }
  }
}

}  // namespace
}  // namespace kla::testing
