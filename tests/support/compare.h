// Comparisons of what a program computed: close by relative RMS, or identical to the last bit; and
// the contract every op fulfils on every device.
#pragma once

#include <cmath>
#include <cstring>
#include <string>

#include "tests/support/draw.h"

namespace kla::testing {

// Relative RMS of a device against the reference on the same rounded inputs.
inline constexpr double kFloatBound = 1e-5, kBf16Bound = 1e-2;

inline void expect_close(const Results& results, const Results& reference, double bound,
                         const std::string& what) {
  ASSERT_EQ(results.size(), reference.size()) << what;
  for (const auto& [name, values] : reference) {
    ASSERT_TRUE(results.contains(name)) << what << ": " << name;
    const double error = relative_rms(results.at(name), values);
    EXPECT_TRUE(error <= bound) << what << ": " << name << " differs by " << error;
  }
}

inline void expect_identical(const Results& a, const Results& b, const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  for (const auto& [name, values] : a) {
    ASSERT_EQ(values.size(), b.at(name).size()) << what << ": " << name;
    if (values.empty()) continue;
    EXPECT_EQ(std::memcmp(values.data(), b.at(name).data(), values.size() * sizeof(double)), 0)
        << what << ": " << name << " is not bit-identical";
  }
}

inline void expect_finite(const Results& results, const std::string& what) {
  for (const auto& [name, values] : results)
    for (double x : values) ASSERT_TRUE(std::isfinite(x)) << what << ": " << name << " has " << x;
}

// Devices compared with the reference: the cpu in test_kernels (tests/kernels/devices.cpp), the
// accelerators that this machine has in test_device, all of them in test_eval (devices.cpp there).
std::vector<Device> devices_under_test();

inline std::vector<Device> all_devices() {
  std::vector<Device> devices = devices_under_test();
  devices.insert(devices.begin(), Device::reference);
  return devices;
}

// Devices that run the code of kernels/cuda/.
inline bool is_gpu(Device device) {
  return device == Device::cuda || device == Device::simt;
}

inline std::vector<DType> compute_types(Device device) {
  return is_gpu(device) ? std::vector{DType::f32, DType::bf16} : std::vector{DType::f32};
}

// One device and compute type held to the reference: finite, close, and the same bits again and
// with any number of threads.
template <class Program>
void expect_like_reference(Program&& program, const std::string& what, Device device, DType compute,
                           double bound) {
  const Results reference = execute(Device::reference, program, 1, compute);
  expect_finite(reference, what + " on reference");
  const std::string where = what + " on " + name_of(device) + " in " + name_of(compute);
  const Results results = execute(device, program, 1, compute);
  expect_finite(results, where);
  expect_close(results, reference, bound, where);
  expect_identical(execute(device, program, 1, compute), results, where + ", again");
  for (int threads : device == Device::cuda ? std::vector<int>{} : std::vector{2, 5})
    expect_identical(execute(device, program, threads, compute), results,
                     where + ", threads " + std::to_string(threads));
}

// The contract of an op, or of several in a row, on every device and in each of its compute types.
template <class Program>
void expect_contract(Program&& program, const std::string& what, double bound = kFloatBound,
                     double bf16_bound = kBf16Bound) {
  expect_identical(execute(Device::reference, program, 3), execute(Device::reference, program),
                   what + " on reference, 3 threads");
  for (Device device : devices_under_test())
    for (DType compute : compute_types(device))
      expect_like_reference(program, what, device, compute,
                            compute == DType::bf16 ? bf16_bound : bound);
}

}  // namespace kla::testing
