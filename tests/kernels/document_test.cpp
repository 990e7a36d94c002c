// No bit crosses a document boundary: whatever stands in one document, outputs and gradients of the
// next (and, backwards, of the one before) are the same bits; and a document in a packed sequence
// computes what it computes alone.
#include <gtest/gtest.h>

#include "tests/support/mixer_case.h"

namespace kla::testing {
namespace {

constexpr DeltaShape kShape{.B = 1, .T = 130, .H = 2, .K = 16, .V = 16};
constexpr const char* kTokenInputs[] = {"q", "k", "v", "gate", "a", "b", "dy"};

// The case with other, larger numbers in tokens [first, last), and the state that borders on them.
MixerCase with_other_tokens(MixerCase c, int64_t first, int64_t last) {
  for (const char* name : kTokenInputs) {
    Values& x = c.inputs[name];
    const int64_t width = static_cast<int64_t>(x.size()) / c.shape.T;
    const Values other = uniform(std::string("other/") + name, last * width, -7, 7);
    for (int64_t i = first * width; i < last * width; ++i)
      x[static_cast<size_t>(i)] = other[static_cast<size_t>(i)];
  }
  if (first == 0) {
    for (double& x : c.inputs["S_initial"]) x = 5 - x;
    for (double& x : c.inputs["conv_tail"]) x = 3 - x;
    c.inputs["position"] = {77};
  } else {
    for (double& x : c.inputs["dS_final"]) x = 5 - x;
  }
  return c;
}

// Tokens [first, last) of every result that has a row for each token.
Results rows(const Results& results, int64_t first, int64_t last) {
  Results cut;
  for (const char* name : {"o", "y", "d.q", "d.k", "d.v", "d.gate", "d.a", "d.b"}) {
    const Values& x = results.at(name);
    const int64_t width = static_cast<int64_t>(x.size()) / kShape.T;
    cut[name] = Values(x.begin() + first * width, x.begin() + last * width);
  }
  return cut;
}

Results run(Device device, const MixerCase& c) {
  return execute(device, [&](Lab& lab) { run_mixer(lab, c); });
}

TEST(Documents, NoBitCrosses) {
  for (Device device : all_devices())
    for (const char* rule : {"kla", "gdn", "deltanet"})
      for (int64_t start : {1, 2, 3, 17, 63, 64, 65, 100, 128}) {
        MixerCase c = draw_mixer(kShape, {.rule = find_rule(rule), .carried = true});
        c.inputs["reset"].assign(static_cast<size_t>(kShape.T), 0.0);
        c.inputs["reset"][static_cast<size_t>(start)] = 1;
        const std::string what = std::string(rule) + ", document from " + std::to_string(start) +
                                 " on " + name_of(device);
        const Results original = run(device, c);
        const Results other_before = run(device, with_other_tokens(c, 0, start));
        const Results other_after = run(device, with_other_tokens(c, start, kShape.T));
        expect_identical(rows(other_before, start, kShape.T), rows(original, start, kShape.T),
                         what + ", after");
        expect_identical(rows(other_after, 0, start), rows(original, 0, start), what + ", before");
        for (const char* name : {"S_final", "position"})
          EXPECT_EQ(other_before.at(name), original.at(name)) << what;
        EXPECT_EQ(other_after.at("d.S_initial"), original.at("d.S_initial")) << what;
        EXPECT_NE(other_before.at("y"), original.at("y")) << what;
      }
}

// A document that starts a chunk is bit for bit what it is alone; elsewhere the chunk grid differs
// and so does rounding.
TEST(Documents, PackedEqualsAlone) {
  for (Device device : all_devices())
    for (int64_t start : {1, 40, 64, 127}) {
      MixerCase packed = draw_mixer(kShape, {.factor = SeqFactor::inv_sqrt_t, .carried = true});
      packed.inputs["reset"].assign(static_cast<size_t>(kShape.T), 0.0);
      packed.inputs["reset"][static_cast<size_t>(start)] = 1;
      MixerCase alone = token_range(packed, start, kShape.T - start);
      for (const char* name : {"S_initial", "conv_tail", "position", "reset"})
        alone.inputs.erase(name);
      const Results whole = run(device, packed), part = run(device, alone);
      const std::string what = "from " + std::to_string(start) + " on " + name_of(device);
      const double bound = start % kChunk == 0           ? 0
                           : device == Device::reference ? 1e-10
                                                         : kFloatBound;
      for (const auto& [name, values] : rows(whole, start, kShape.T))
        EXPECT_LE(relative_rms(values, part.at(name)), bound) << name << " " << what;
      EXPECT_LE(relative_rms(whole.at("S_final"), part.at("S_final")), bound) << what;
      EXPECT_EQ(whole.at("conv_tail"), part.at("conv_tail")) << what;
      EXPECT_EQ(whole.at("position"), part.at("position")) << what;
    }
}

// The calls may be cut anywhere, also just after a document began: what the convolution and the
// position carry belongs to the last document only.
TEST(Documents, CarriedAcrossCalls) {
  MixerCase c = draw_mixer(kShape, {.factor = SeqFactor::inv_t});
  c.inputs["reset"].assign(static_cast<size_t>(kShape.T), 0.0);
  for (size_t t : {20u, 64u, 66u, 127u}) c.inputs["reset"][t] = 1;
  const auto forward = [](const MixerCase& part) {
    return execute(Device::reference, [&](Lab& lab) { run_mixer(lab, part, false); });
  };
  const Results whole = forward(c);
  for (int64_t cut : {20, 21, 22, 23, 24, 65, 66, 67, 68, 69, 128}) {
    const Results head = forward(token_range(c, 0, cut));
    const Results tail = forward(token_range(c, cut, kShape.T - cut, &head));
    const auto rest = whole.at("y").begin() + cut * kShape.H * kShape.V;
    EXPECT_LE(relative_rms(tail.at("y"), Values(rest, whole.at("y").end())), 1e-10) << cut;
    EXPECT_LE(relative_rms(tail.at("S_final"), whole.at("S_final")), 1e-10) << cut;
    EXPECT_EQ(tail.at("position"), whole.at("position")) << cut;
  }
}

}  // namespace
}  // namespace kla::testing
