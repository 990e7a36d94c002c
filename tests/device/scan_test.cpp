// The delta-rule kernels of the CUDA backend, on whatever device runs them here, against the
// reference in double on the same rounded inputs: forward scan, reverse scan and chunk backward,
// each fed with what the one before it made.
#include <gtest/gtest.h>

#include "tests/support/delta_program.h"

namespace kla::testing {
namespace {

// The devices that run kernels/cuda/.
std::vector<Device> cuda_devices() {
  std::vector<Device> devices = devices_under_test();
  std::erase(devices, Device::cpu);
  return devices;
}

std::string describe(const DeltaShape& s) {
  return "T " + std::to_string(s.T) + ", H " + std::to_string(s.H) + ", K " + std::to_string(s.K) +
         ", V " + std::to_string(s.V);
}

void expect_scan(const DeltaProblem& p, const std::string& what) {
  const DeltaCache cache = cache_of(p);
  const auto program = [&](Lab& lab) { run_scan(lab, p, cache); };
  for (DType compute : {DType::f32, DType::bf16}) {
    const Results reference = execute(Device::reference, program, 1, compute);
    for (Device device : cuda_devices()) {
      const Results results = execute(device, program, 1, compute);
      const std::string where = describe(p.shape) + ", " + what + " on " + name_of(device) +
                                " in " + name_of(compute);
      expect_finite(results, where);
      expect_close(results, reference, compute == DType::f32 ? kFloatBound : kBf16Bound, where);
    }
  }
}

TEST(DeviceScan, TakesEveryLength) {
  for (int64_t T : {0, 1, 2, 63, 64, 65, 130})
    expect_scan(draw_problem({.B = 2, .T = T, .H = 3, .K = 16, .V = 16}, Decay::slow, 0.5),
                "slow decay");
}

TEST(DeviceScan, TakesEveryHeadShape) {
  constexpr int64_t kShapes[][2] = {{96, 192}, {48, 96}, {16, 16}, {80, 48}, {112, 32}, {256, 32},
                                    {176, 16}, {32, 512}};
  for (const auto& [K, V] : kShapes)
    expect_scan(draw_problem({.T = 65, .H = 1, .K = K, .V = V}, Decay::slow, 0.3), "slow decay");
}

TEST(DeviceScan, KeepsHeadsAndSequencesApart) {
  expect_scan(draw_problem({.B = 2, .T = 3, .H = 3, .K = 16, .V = 32}, Decay::mixed), "mixed decay");
}

TEST(DeviceScan, StandsStrongDecayCorrelatedKeysAndLargeGain) {
  for (Decay decay : kDecays)
    for (double gain : {1.0, 2.0})
      expect_scan(draw_problem({.T = 70, .H = 1, .K = 32, .V = 16}, decay, 0.95, gain),
                  "decay " + std::to_string(static_cast<int>(decay)) + ", gain " +
                      std::to_string(gain));
}

}  // namespace
}  // namespace kla::testing
