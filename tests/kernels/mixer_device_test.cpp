// mixer_prep, the scan and its backward on every device against the reference, op by op and as a
// chain: shapes of the 0.4B preset and odd ones, lengths round the chunk, strong decay, correlated
// keys, resets anywhere, optional views given or not; one thread = many threads, bit for bit.
#include <gtest/gtest.h>

#include "tests/support/mixer_case.h"

namespace kla::testing {
namespace {

constexpr int64_t kLengths[] = {0, 1, 2, 63, 64, 65, 130};

void expect_scan(DeltaProblem p, const std::string& what) {
  DeltaCache cache = cache_of(p);
  cache = {rounded(cache.T_zero)};
  expect_contract([&](Lab& lab) { run_scan(lab, p, cache); }, describe(p.shape, what));
}

// Prep alone, with upstream gradients of its own.
void expect_prep(const MixerCase& c, const std::string& what) {
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
    lab.keep("T_zero", prep.T_zero);
    lab.keep("conv_tail", prep.conv_tail_out);
    lab.keep("position", prep.position_out);
    prep_backward(lab, c, prep,
                  {{"dq", lab.compute(dq, {B, T, H, K})},
                   {"dk", lab.compute(dk, {B, T, H, K})},
                   {"dv", lab.compute(dv, {B, T, H, V})},
                   {"dbeta", lab.acc(dbeta, {B, T, H})},
                   {"dg", lab.acc(dg, {B, T, H})}});
  };
  expect_contract(program, describe(c.shape, what));
}

TEST(PrepDevice, EveryRuleAndGate) {
  for (int rule = 0; rule < kRuleCount; ++rule)
    for (DecayGate decay : {DecayGate::dual_mamba, DecayGate::dual_logsigmoid, DecayGate::single})
      expect_prep(
          draw_mixer({.B = 2, .T = 70, .H = 3, .K = 17, .V = 31},
                     {.rule = rule, .decay = decay, .carried = true}),
          std::string(rule_info(rule).name) + ", gate " + std::to_string(static_cast<int>(decay)));
}

TEST(PrepDevice, EveryFactor) {
  for (SeqFactor factor : {SeqFactor::inv_t, SeqFactor::inv_sqrt_t, SeqFactor::inv_log_t})
    for (const char* rule : {"kla", "seq_only"})
      expect_prep(draw_mixer({.B = 2, .T = 70, .H = 2, .K = 8, .V = 16},
                             {.rule = find_rule(rule), .factor = factor, .carried = true}),
                  std::string(rule) + ", factor " + std::to_string(static_cast<int>(factor)));
}

TEST(PrepDevice, Lengths) {
  for (int64_t T : kLengths)
    for (bool carried : {false, true})
      expect_prep(draw_mixer({.B = 2, .T = T, .H = 2, .K = 16, .V = 24}, {.carried = carried}),
                  carried ? "carried" : "fresh");
}

TEST(PrepDevice, ShapesOfThePresets) {
  for (const char* rule : {"kla", "gdn", "longhorn", "deltanet"}) {
    const MixerDraw draw{.rule = find_rule(rule)};
    expect_prep(draw_mixer({.B = 1, .T = 67, .H = 2, .K = 96, .V = 192}, draw), rule);
    expect_prep(draw_mixer({.B = 1, .T = 67, .H = 4, .K = 48, .V = 96}, draw), rule);
  }
}

TEST(PrepDevice, Resets) {
  const DeltaShape s{.B = 2, .T = 70, .H = 2, .K = 8, .V = 12};
  for (const char* rule : {"kla", "deltanet", "seq_only"}) {
    MixerCase c = draw_mixer(s, {.rule = find_rule(rule), .carried = true});
    c.inputs["reset"] = resets_at(s, {0, 1, 2, 5, 63, 64, 69, 72, 133, 139});
    expect_prep(c, std::string(rule) + ", resets");
  }
}

TEST(ScanDevice, Lengths) {
  for (int64_t T : kLengths) {
    expect_scan(draw_problem({.B = 2, .T = T, .H = 3, .K = 16, .V = 24}, Decay::slow), "slow");
    expect_scan(draw_problem({.B = 1, .T = T, .H = 2, .K = 7, .V = 5}, Decay::mixed), "mixed");
  }
}

TEST(ScanDevice, ShapesOfThePresets) {
  for (const auto& [H, K, V] : {std::array<int64_t, 3>{2, 96, 192}, {3, 48, 96}, {1, 33, 65}})
    expect_scan(draw_problem({.B = 1, .T = 130, .H = H, .K = K, .V = V}, Decay::mixed), "mixed");
}

TEST(ScanDevice, EveryDecayGainAndCorrelation) {
  for (Decay decay : kDecays)
    for (double gain : {1.0, 2.0})
      for (double cosine : {0.0, 0.95})
        expect_scan(draw_problem({.B = 1, .T = 150, .H = 2, .K = 24, .V = 40}, decay, cosine, gain),
                    "decay " + std::to_string(static_cast<int>(decay)) + ", gain " +
                        std::to_string(gain) + ", cosine " + std::to_string(cosine));
}

TEST(ScanDevice, ResetAtEveryPositionOfAChunk) {
  const DeltaShape s{.B = 1, .T = 100, .H = 1, .K = 8, .V = 6};
  DeltaProblem p = draw_problem(s, Decay::slow);
  for (int64_t t = 0; t <= 65; ++t) {
    p.reset = resets_at(s, {t});
    expect_scan(p, "reset at " + std::to_string(t));
  }
  for (const auto& tokens : {std::initializer_list<int64_t>{0, 1, 2}, {62, 63, 64, 65}, {64, 99}}) {
    p.reset = resets_at(s, tokens);
    expect_scan(p, "consecutive resets from " + std::to_string(*tokens.begin()));
  }
}

TEST(MixerDevice, TheWholeChain) {
  for (int rule = 0; rule < kRuleCount; ++rule)
    for (bool strong : {false, true}) {
      const DeltaShape s{.B = 2, .T = 130, .H = 2, .K = 24, .V = 32};
      const MixerCase c = draw_mixer(s, {.rule = rule, .strong = strong, .carried = true});
      expect_contract([&](Lab& lab) { run_mixer(lab, c); },
                      std::string(rule_info(rule).name) + (strong ? ", strong decay" : ""));
    }
}

// An optional input that is not given is a zero one; an output that is not asked for changes
// nothing else.
TEST(MixerDevice, OptionalViewsOfPrep) {
  MixerCase bare = draw_mixer({.B = 2, .T = 70, .H = 2, .K = 8, .V = 12}, {});
  MixerCase zeros = bare;
  zeros.inputs["conv_tail"].assign(static_cast<size_t>(2 * 3 * bare.channels()), 0.0);
  zeros.inputs["position"] = {0, 0};
  zeros.inputs["reset"].assign(2 * 70, 0.0);
  zeros.inputs["S_initial"].assign(2 * 2 * 8 * 12, 0.0);
  for (Device device : all_devices()) {
    const Results given = execute(device, [&](Lab& lab) { run_mixer(lab, zeros); });
    Results results = execute(device, [&](Lab& lab) { run_mixer(lab, bare); });
    results["d.S_initial"] = given.at("d.S_initial");
    expect_identical(results, given, std::string("zeros or nothing on ") + name_of(device));
  }
}

TEST(MixerDevice, OptionalViewsOfTheScan) {
  const DeltaShape s{.B = 2, .T = 70, .H = 2, .K = 8, .V = 12};
  DeltaProblem p = draw_problem(s, Decay::slow);
  for (Values* state : {&p.S_initial, &p.dS_final}) std::fill(state->begin(), state->end(), 0.0);
  const DeltaCache cache = cache_of(p);
  for (Device device : all_devices()) {
    const Results full = execute(device, [&](Lab& lab) { run_scan(lab, p, cache); });
    const Results bare = execute(device, [&](Lab& lab) {
      DeltaScanForward forward;
      forward.o = lab.compute({s.B, s.T, s.H, s.V});
      forward.in = delta_inputs(lab, p, cache);
      lab(ops::delta_scan_forward, forward);
      lab.keep("o", forward.o);
      forward.S_enter = lab.compute({s.B, s.NC(), s.H, s.V, s.K});
      lab(ops::delta_scan_forward, forward);
      DeltaReverseScan reverse;
      reverse.dS_leave = lab.compute({s.B, s.NC(), s.H, s.V, s.K});
      reverse.dout = lab.compute(p.dout, {s.B, s.T, s.H, s.V});
      reverse.in = forward.in;
      lab(ops::delta_reverse_scan, reverse);
      const DeltaChunkBackward chunk{.dq = lab.compute({s.B, s.T, s.H, s.K}),
                                     .dk = lab.compute({s.B, s.T, s.H, s.K}),
                                     .dv = lab.compute({s.B, s.T, s.H, s.V}),
                                     .dbeta = lab.acc({s.B, s.T, s.H}),
                                     .dg = lab.acc({s.B, s.T, s.H}),
                                     .dout = reverse.dout,
                                     .S_enter = forward.S_enter,
                                     .dS_leave = reverse.dS_leave,
                                     .in = forward.in};
      lab(ops::delta_chunk_backward, chunk);
      for (const auto& [name, view] : {std::pair{"dq", chunk.dq},
                                       {"dk", chunk.dk},
                                       {"dv", chunk.dv},
                                       {"dbeta", chunk.dbeta},
                                       {"dg", chunk.dg}})
        lab.keep(name, view);
    });
    for (const auto& [name, values] : bare)
      EXPECT_EQ(values, full.at(name)) << name << " on " << name_of(device);
  }
}

TEST(MixerDevice, StateUpdatedInPlace) {
  const DeltaShape s{.B = 2, .T = 130, .H = 2, .K = 8, .V = 12};
  const DeltaProblem p = draw_problem(s, Decay::slow);
  const DeltaCache cache = cache_of(p);
  for (Device device : all_devices()) {
    const Results full = execute(device, [&](Lab& lab) { run_scan(lab, p, cache); });
    const Results in_place = execute(device, [&](Lab& lab) {
      DeltaScanForward forward;
      forward.o = lab.compute({s.B, s.T, s.H, s.V});
      forward.S_initial = lab.acc(p.S_initial, {s.B, s.H, s.V, s.K});
      forward.S_final = forward.S_initial;
      forward.in = delta_inputs(lab, p, cache);
      lab(ops::delta_scan_forward, forward);
      lab.keep("o", forward.o);
      lab.keep("S_final", forward.S_final);
    });
    for (const auto& [name, values] : in_place)
      EXPECT_EQ(values, full.at(name)) << name << " on " << name_of(device);
  }
}

// Convolution tail and position advanced in place, for calls shorter than the convolution too.
TEST(MixerDevice, TailAndPositionInPlace) {
  for (int64_t T : {0, 1, 2, 3, 70})
    for (Device device : all_devices()) {
      const MixerCase c = draw_mixer({.B = 2, .T = T, .H = 2, .K = 8, .V = 12}, {.carried = true});
      const auto run = [&](bool in_place) {
        return execute(device, [&](Lab& lab) {
          const auto& [B, tokens, H, K, V, C] = c.shape;
          MixerPrepForward prep{.q_hat = lab.compute({B, T, H, K}),
                                .k_hat = lab.compute({B, T, H, K}),
                                .v_hat = lab.compute({B, T, H, V}),
                                .beta = lab.acc({B, T, H}),
                                .g = lab.acc({B, T, H}),
                                .T_zero = View(),
                                .conv_tail_out = lab.acc({B, 3, c.channels()}),
                                .position_out = lab.typed(DType::i64, {B}),
                                .in = mixer_inputs(lab, c),
                                .w = mixer_parameters(lab, c),
                                .options = c.options};
          if (in_place) {
            prep.conv_tail_out = prep.in.conv_tail;
            prep.position_out = prep.in.position;
          }
          lab(ops::mixer_prep_forward, prep);
          lab.keep("q_hat", prep.q_hat);
          lab.keep("v_hat", prep.v_hat);
          lab.keep("conv_tail", prep.conv_tail_out);
          lab.keep("position", prep.position_out);
        });
      };
      const std::string what = "T " + std::to_string(T) + " on " + name_of(device);
      expect_identical(run(true), run(false), what);
      if (T > 0) continue;
      EXPECT_EQ(run(true).at("conv_tail"), c["conv_tail"]) << what;
    }
}

}  // namespace
}  // namespace kla::testing
