// The mixer ops against PyTorch float64 (tools/oracle/): output, final state and every gradient,
// for all rules, factors and gates; the reference to 1e-9, the other devices to f32 accuracy.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "tests/support/mixer_case.h"

namespace kla::testing {
namespace {

std::vector<Fixture> mixer_fixtures() {
  std::vector<Fixture> fixtures;
  for (const auto& entry : std::filesystem::directory_iterator(KLA_SOURCE_DIR "/tests/fixtures"))
    if (entry.path().filename().string().starts_with("mixer_"))
      fixtures.push_back(read_fixture(entry.path().string()));
  std::sort(fixtures.begin(), fixtures.end(),
            [](const Fixture& a, const Fixture& b) { return a.name < b.name; });
  return fixtures;
}

void expect_fixture(const Fixture& fixture, Results results, double bound,
                    const std::string& where) {
  for (const auto& [name, expected] : fixture.expected) {
    ASSERT_TRUE(results.contains(name)) << where << ": " << name << " was not computed";
    const double error = fixture.error(name, results.at(name));
    EXPECT_TRUE(error <= bound) << where << ": " << name << " differs by " << error;
  }
}

Results run_from_zero(Device device, const MixerCase& c) {
  return execute(device, [&](Lab& lab) {
    lab.initial_gradient = 0;
    run_mixer(lab, c);
  });
}

TEST(MixerFixtures, CoverEveryRuleFactorAndGateOfTheStudy) {
  std::map<std::string, int> seen;
  for (const Fixture& f : mixer_fixtures())
    for (const char* key : {"rule", "factor", "decay"}) ++seen[f.option(key)];
  for (const char* rule : {"gdn", "kla", "relaxed_kaczmarz", "kaczmarz", "k_norm_only", "longhorn",
                           "deltanet", "no_norm", "seq_only", "learned_scalar"})
    EXPECT_GE(seen[rule], 2) << rule;
  for (const char* name : {"inv_t", "inv_sqrt_t", "inv_log_t", "single", "dual_logsigmoid"})
    EXPECT_GE(seen[name], 1) << name;
}

TEST(MixerFixtures, ReferenceWithEveryChunkLength) {
  for (const Fixture& fixture : mixer_fixtures())
    for (int64_t C : {16, 32, 64, 128}) {
      MixerCase c = mixer_case(fixture);
      c.shape.C = C;
      const std::string where = fixture.name + " on reference, chunks of " + std::to_string(C);
      expect_fixture(fixture, run_from_zero(Device::reference, c), 1e-9, where);
    }
}

TEST(MixerFixtures, OtherDevices) {
  for (Device device : devices_under_test())
    for (const Fixture& fixture : mixer_fixtures())
      expect_fixture(fixture, run_from_zero(device, mixer_case(fixture)), kFloatBound,
                     fixture.name + " on " + name_of(device));
}

TEST(MixerFixtures, InTwoCallsWithCarriedState) {
  for (const Fixture& fixture : mixer_fixtures()) {
    const MixerCase c = mixer_case(fixture);
    for (int64_t first : {1, 2, 33, 64, 69}) {
      if (first >= c.shape.T) continue;
      const auto forward = [&](const MixerCase& part) {
        return execute(Device::reference, [&](Lab& lab) { run_mixer(lab, part, false); });
      };
      const Results head = forward(token_range(c, 0, first));
      const Results tail = forward(token_range(c, first, c.shape.T - first, &head));
      const int64_t width = c.shape.H * c.shape.V;
      Values y;
      for (int64_t b = 0; b < c.shape.B; ++b)
        for (const auto& [part, T] : {std::pair{&head, first}, {&tail, c.shape.T - first}}) {
          const auto start = part->at("y").begin() + b * T * width;
          y.insert(y.end(), start, start + T * width);
        }
      const std::string where = fixture.name + " split at " + std::to_string(first);
      EXPECT_LE(fixture.error("y", y), 1e-9) << where;
      EXPECT_LE(fixture.error("S_final", tail.at("S_final")), 1e-9) << where;
    }
  }
}

}  // namespace
}  // namespace kla::testing
