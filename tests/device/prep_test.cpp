// The mixer_prep and delta_step kernels of the CUDA backend, on whatever device runs them here,
// against the reference in double on the same rounded inputs: every rule, gate and sequence factor,
// head shapes, lengths round the chunk and the backward's tiles, resets anywhere, aligned and
// unaligned views, memory in place.
#include <gtest/gtest.h>

#include "tests/support/mixer_case.h"

namespace kla::testing {
namespace {

// Prep, forward and backward, with upstream gradients of its own.
void run_prep(Lab& lab, const MixerCase& c) {
  const auto& [B, T, H, K, V, C] = c.shape;
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
                {{"dq", lab.compute(uniform("dq", B * T * H * K), {B, T, H, K})},
                 {"dk", lab.compute(uniform("dk", B * T * H * K), {B, T, H, K})},
                 {"dv", lab.compute(uniform("dv", B * T * H * V), {B, T, H, V})},
                 {"dbeta", lab.acc(uniform("dbeta", B * T * H), {B, T, H})},
                 {"dg", lab.acc(uniform("dg", B * T * H), {B, T, H})}});
}

void expect_prep(const MixerCase& c, const std::string& what, bool aligned) {
  const auto program = [&](Lab& lab) {
    lab.aligned_columns = aligned;
    run_prep(lab, c);
  };
  for (DType compute : {DType::f32, DType::bf16}) {
    const Results reference = execute(Device::reference, program, 1, compute);
    for (Device device : devices_under_test()) {
      const Results results = execute(device, program, 1, compute);
      const std::string where = describe(c.shape, what) + (aligned ? ", aligned" : "") + " on " +
                                name_of(device) + " in " + name_of(compute);
      expect_finite(results, where);
      expect_close(results, reference, compute == DType::f32 ? kFloatBound : kBf16Bound, where);
    }
  }
}

TEST(DevicePrep, TakesEveryRuleAndGate) {
  for (int rule = 0; rule < kRuleCount; ++rule) {
    const auto decay = static_cast<DecayGate>(rule % 3);
    for (bool aligned : {true, false})
      expect_prep(draw_mixer({.B = 1, .T = 37, .H = 2, .K = 16, .V = 32},
                             {.rule = rule, .decay = decay, .carried = true}),
                  std::string(rule_info(rule).name), aligned);
  }
  for (DecayGate decay : {DecayGate::dual_mamba, DecayGate::dual_logsigmoid, DecayGate::single})
    for (bool strong : {false, true})
      expect_prep(draw_mixer({.B = 1, .T = 37, .H = 2, .K = 16, .V = 16},
                             {.decay = decay, .strong = strong}),
                  "gate " + std::to_string(static_cast<int>(decay)), true);
}

TEST(DevicePrep, TakesEveryFactor) {
  for (SeqFactor factor : {SeqFactor::inv_t, SeqFactor::inv_sqrt_t, SeqFactor::inv_log_t})
    expect_prep(draw_mixer({.B = 2, .T = 35, .H = 1, .K = 16, .V = 16},
                           {.factor = factor, .carried = true}),
                "factor " + std::to_string(static_cast<int>(factor)), true);
}

TEST(DevicePrep, TakesEveryLength) {
  for (int64_t T : {0, 1, 2, 3, 63, 64, 65, 67, 130})
    for (bool carried : {false, true})
      expect_prep(draw_mixer({.B = 2, .T = T, .H = 2, .K = 16, .V = 16}, {.carried = carried}),
                  carried ? "carried" : "fresh", T % 2 == 0);
}

TEST(DevicePrep, TakesEveryHeadShape) {
  constexpr int64_t kShapes[][2] = {{96, 192}, {48, 96}, {112, 32}, {256, 32}, {32, 512}};
  for (const auto& [K, V] : kShapes)
    expect_prep(draw_mixer({.B = 1, .T = 66, .H = 1, .K = K, .V = V}, {}), "kla", true);
}

// Keys of cosine 0.95 and steps near 1: the powers of A that an inverse by power series sums would
// reach thousands.
TEST(DevicePrep, InvertsCorrelatedKeys) {
  MixerCase c = draw_mixer({.B = 1, .T = 128, .H = 2, .K = 32, .V = 16}, {});
  for (double& x : c.inputs["k"]) x = to_f32(1.5 + 0.3 * x);
  for (double& x : c.inputs["k_conv"]) x = to_f32(0.5 + 0.2 * x);
  for (double& x : c.inputs["b"]) x = to_f32(x + 4);
  expect_prep(c, "correlated keys", true);
}

// Enough sequences for a block of the backward to walk over several steps (all of a sequence; a
// third of it), or with resets over two tiles, and its sums with it.
TEST(DevicePrep, SumsOverTilesAndBlocks) {
  for (const auto& [B, resets] : {std::pair{16, false}, {8, false}, {16, true}}) {
    MixerCase c = draw_mixer({.B = B, .T = 65, .H = 64, .K = 16, .V = 16}, {});
    if (resets) c.inputs["reset"] = resets_at(c.shape, {63});
    const auto program = [&](Lab& lab) {
      lab.aligned_columns = true;
      run_prep(lab, c);
    };
    const Results reference = execute(Device::reference, program);
    for (Device device : devices_under_test())
      expect_close(execute(device, program), reference, kFloatBound, name_of(device));
  }
}

TEST(DevicePrep, StartsDocumentsAnywhere) {
  const DeltaShape s{.B = 1, .T = 133, .H = 1, .K = 16, .V = 16};
  MixerCase c = draw_mixer(s, {.factor = SeqFactor::inv_sqrt_t, .carried = true});
  const std::vector<std::vector<int64_t>> cases{{0},  {1, 2, 3, 4},        {5, 62, 63, 64, 65},
                                                {66}, {67, 130, 131, 132}, {61, 127, 128}};
  for (const std::vector<int64_t>& tokens : cases) {
    c.inputs["reset"] = resets_at(s, tokens);
    expect_prep(c, "resets from " + std::to_string(tokens[0]), true);
  }
  std::vector<int64_t> odd;
  for (int64_t t = 1; t < s.T; t += 1 + t % 3) odd.push_back(t);
  c.inputs["reset"] = resets_at(s, odd);
  expect_prep(c, "many resets", false);
}

// Tail and position are advanced where they lie, and T_zero may be absent.
TEST(DevicePrep, DecodesInPlace) {
  const MixerCase c = draw_mixer({.B = 2, .T = 1, .H = 2, .K = 16, .V = 32}, {.carried = true});
  const auto program = [&](Lab& lab) {
    const auto& [B, T, H, K, V, C] = c.shape;
    MixerPrepForward prep{.q_hat = lab.compute({B, T, H, K}),
                          .k_hat = lab.compute({B, T, H, K}),
                          .v_hat = lab.compute({B, T, H, V}),
                          .beta = lab.acc({B, T, H}),
                          .g = lab.acc({B, T, H}),
                          .T_zero = {},
                          .conv_tail_out = {},
                          .position_out = {},
                          .in = mixer_inputs(lab, c),
                          .w = mixer_parameters(lab, c),
                          .options = c.options};
    prep.conv_tail_out = prep.in.conv_tail;
    prep.position_out = prep.in.position;
    for (const char* name : {"first", "second"}) {
      lab(ops::mixer_prep_forward, prep);
      lab.keep(std::string(name) + " q", prep.q_hat);
      lab.keep(std::string(name) + " k", prep.k_hat);
      lab.keep(std::string(name) + " v", prep.v_hat);
    }
    lab.keep("tail", prep.conv_tail_out);
    lab.keep("position", prep.position_out);
  };
  for (DType compute : {DType::f32, DType::bf16})
    for (Device device : devices_under_test())
      expect_close(execute(device, program, 1, compute),
                   execute(Device::reference, program, 1, compute),
                   compute == DType::f32 ? kFloatBound : kBf16Bound, name_of(device));
}

TEST(DevicePrep, HasTheSameBitsAgain) {
  MixerCase c = draw_mixer({.B = 2, .T = 70, .H = 2, .K = 32, .V = 48}, {.carried = true});
  c.inputs["reset"] = resets_at(c.shape, {3, 66, 100});
  const auto program = [&](Lab& lab) { run_prep(lab, c); };
  for (DType compute : {DType::f32, DType::bf16})
    for (Device device : devices_under_test())
      expect_identical(execute(device, program, 1, compute), execute(device, program, 3, compute),
                       name_of(device));
}

TEST(DevicePrep, RefusesHeadsItDoesNotTake) {
  for (const auto& [K, V] : {std::pair<int64_t, int64_t>{24, 16}, {272, 16}, {16, 8}}) {
    const MixerCase c = draw_mixer({.B = 1, .T = 2, .H = 1, .K = K, .V = V}, {});
    for (Device device : devices_under_test()) {
      Arena plan("plan");
      Lab lab(device, 1, plan);
      try {
        prep_forward(lab, c);
        FAIL() << "took K " << K << ", V " << V;
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), Exit::usage);
        EXPECT_NE(std::string(error.what()).find(V == 8 ? "value_head_dim" : "key_head_dim"),
                  std::string::npos);
      }
    }
  }
}

TEST(DeviceStep, FollowsTheRecurrence) {
  constexpr int64_t kShapes[][2] = {{96, 192}, {48, 96},  {16, 16},  {80, 32},
                                    {256, 32}, {208, 16}, {128, 16}, {32, 512}};
  for (const auto& [keys, values] : kShapes) {
    const int64_t B = 2, H = 2, K = keys, V = values;
    const auto program = [&](Lab& lab) {
      const DeltaStep step{.o = lab.compute({B, H, V}),
                           .S = lab.acc(uniform("S", B * H * V * K), {B, H, V, K}),
                           .q = lab.compute(uniform("q", B * H * K), {B, H, K}),
                           .k = lab.compute(uniform("k", B * H * K, -0.2, 0.2), {B, H, K}),
                           .v = lab.compute(uniform("v", B * H * V), {B, H, V}),
                           .beta = lab.acc(uniform("beta", B * H, 0, 1), {B, H}),
                           .g = lab.acc(uniform("g", B * H, -3, 0), {B, H}),
                           .scale = 0.1};
      for (int token = 0; token < 2; ++token) lab(ops::delta_step, step);
      lab.keep("o", step.o);
      lab.keep("S", step.S);
    };
    for (DType compute : {DType::f32, DType::bf16})
      for (Device device : devices_under_test())
        expect_close(execute(device, program, 1, compute),
                     execute(Device::reference, program, 1, compute),
                     compute == DType::f32 ? kFloatBound : kBf16Bound,
                     "K " + std::to_string(K) + ", V " + std::to_string(V));
  }
}

}  // namespace
}  // namespace kla::testing
