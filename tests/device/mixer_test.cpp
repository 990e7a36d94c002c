// The delta rule and the whole mixer on the accelerators, where it is hard: the heads of the 0.4B
// preset, strong decay, keys that are nearly parallel, documents that start anywhere.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/mixer_case.h"

namespace kla::testing {
namespace {

constexpr double kMixerBf16Bound = 2e-2;  // of prep, scan and norm in a row

// Gradients of parameters that every token adds to, and the gradients they are added up beside.
// Their terms have either sign, and neighbouring tokens share the rounding of what they have in
// common, so in bf16 the error of a sum counts relative to the magnitudes of its terms. In f32 on
// a card, whose tensor cores cut off, they are no better than the last place of those magnitudes:
// d.theta of learned_scalar under strong decay is 158 times smaller than its terms together.
const std::map<std::string, std::string> kSums = {
    {"d.b_bias", "d.b"}, {"d.a_bias", "d.a"}, {"d.a_log", "d.a"}, {"d.theta", "d.b"}};

constexpr double kLastPlace = 0x1p-23;
void expect_mixer_close(Results results, Results reference, DType compute,
                        const std::string& what) {
  for (const auto& [sum, terms] : kSums) {
    if (!reference.contains(sum)) continue;
    double difference = 0, size = 0, magnitudes = 0;
    for (size_t i = 0; i < reference.at(sum).size(); ++i) {
      difference += std::abs(results.at(sum)[i] - reference.at(sum)[i]);
      size += std::abs(reference.at(sum)[i]);
    }
    for (double term : reference.at(terms)) magnitudes += std::abs(term);
    EXPECT_LE(difference, compute == DType::f32
                              ? std::max(kFloatBound * size, kLastPlace * magnitudes)
                              : kMixerBf16Bound * magnitudes)
        << what << ": " << sum;
    results.erase(sum);
    reference.erase(sum);
  }
  expect_close(results, reference, compute == DType::f32 ? kFloatBound : kMixerBf16Bound, what);
}

// Prep, scan and norm in a row, forward and backward: close in both types, and the same bits with
// other threads in another order.
void expect_mixer(const MixerCase& c, const std::string& what) {
  const auto program = [&](Lab& lab) { run_mixer(lab, c); };
  for (Device device : devices_under_test())
    for (DType compute : compute_types(device)) {
      const std::string where = what + " on " + name_of(device) + " in " + name_of(compute);
      const Results reference = execute(Device::reference, program, 1, compute);
      const Results results = execute(device, program, 1, compute);
      expect_finite(results, where);
      if (compute == DType::f32 && device != Device::cuda)
        expect_close(results, reference, kFloatBound, where);
      else
        expect_mixer_close(results, reference, compute, where);
      expect_identical(execute(device, program, 3, compute), results, where + ", 3 threads");
    }
}

struct Heads {
  int64_t H, K, V;
};
constexpr Heads kPresets[] = {{2, 96, 192}, {2, 48, 96}};  // of 0.4B, and with twice the heads

// One run per device and type.
void expect_delta(const DeltaProblem& p, const std::string& what) {
  const DeltaCache cache = cache_of(p);
  const auto program = [&](Lab& lab) { run_scan(lab, p, cache); };
  for (DType compute : {DType::f32, DType::bf16}) {
    const Results reference = execute(Device::reference, program, 1, compute);
    for (Device device : devices_under_test()) {
      const Results results = execute(device, program, 1, compute);
      const std::string where =
          describe(p.shape, what) + " on " + name_of(device) + " in " + name_of(compute);
      expect_finite(results, where);
      expect_close(results, reference, compute == DType::f32 ? kFloatBound : kBf16Bound, where);
    }
  }
}

TEST(DeviceDelta, PresetsKeepTheContract) {
  for (const auto& [H, K, V] : kPresets) {
    DeltaProblem p = draw_problem({.B = 1, .T = 67, .H = H, .K = K, .V = V}, Decay::mixed, 0.5);
    p.reset = resets_at(p.shape, {40});
    const DeltaCache cache = cache_of(p);
    expect_contract([&](Lab& lab) { run_scan(lab, p, cache); }, describe(p.shape, "contract"));
  }
}

TEST(DeviceDelta, PresetsStandStrongDecayAndCorrelatedKeys) {
  for (const auto& [H, K, V] : kPresets)
    for (Decay decay : kDecays)
      expect_delta(draw_problem({.B = 1, .T = 131, .H = 1, .K = K, .V = V}, decay, 0.95),
                   "decay " + std::to_string(static_cast<int>(decay)) + ", cosine 0.95");
}

TEST(DeviceDelta, AResetAtEveryPositionOfAChunk) {
  DeltaProblem p = draw_problem({.B = 1, .T = 70, .H = 1, .K = 48, .V = 96}, Decay::slow, 0.5);
  for (int64_t t = 0; t <= 66; ++t) {
    p.reset = resets_at(p.shape, {t});
    expect_delta(p, "reset at " + std::to_string(t));
  }
}

TEST(DeviceDelta, ResetsAtTheEdgesAndOnConsecutiveTokens) {
  const std::vector<std::vector<int64_t>> cases = {
      {0, 1, 2}, {61, 62, 63}, {62, 63, 64, 65}, {64, 128}, {63, 127, 129}, {0, 64, 99, 100, 128}};
  for (const auto& [H, K, V] : kPresets) {
    DeltaProblem p = draw_problem({.B = 1, .T = 130, .H = 1, .K = K, .V = V}, Decay::mixed, 0.95);
    for (const std::vector<int64_t>& tokens : cases) {
      p.reset = resets_at(p.shape, tokens);
      expect_delta(p, "resets from " + std::to_string(tokens[0]));
    }
  }
}

TEST(DeviceMixer, TheWholeChainOfEveryRule) {
  for (int rule = 0; rule < kRuleCount; ++rule)
    for (bool strong : {false, true}) {
      MixerCase c = draw_mixer({.B = 1, .T = 67, .H = 2, .K = 16, .V = 32},
                               {.rule = rule, .strong = strong, .carried = true});
      c.inputs["reset"] = resets_at(c.shape, {33});
      expect_mixer(c, std::string(rule_info(rule).name) + (strong ? ", strong decay" : ""));
    }
}

TEST(DeviceMixer, TheWholeChainOfThePresets) {
  const char* rule = "kla";
  for (const auto& [H, K, V] : kPresets) {
    const DeltaShape s{.B = 1, .T = 67, .H = H, .K = K, .V = V};
    expect_mixer(draw_mixer(s, {.rule = find_rule(rule), .carried = true}), describe(s, rule));
    rule = "gdn";
  }
}

}  // namespace
}  // namespace kla::testing
