// Comparisons of what a program computed: close by relative RMS, or identical to the last bit; and
// the contract every op fulfils on every device.
#pragma once

#include <cmath>
#include <cstring>
#include <string>

#include "tests/support/draw.h"

namespace kla::testing {

inline constexpr double kFloatBound = 1e-5;  // relative RMS of an f32 device against the reference

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

// Devices compared with the reference: those this binary was linked with.
inline std::vector<Device> devices_under_test() {
  std::vector<Device> devices;
  for (Device device : {Device::cpu, Device::simt, Device::cuda})
    for (const OpBase* op : OpBase::all())
      if (op->has(device)) {
        devices.push_back(device);
        break;
      }
  return devices;
}

inline std::vector<Device> all_devices() {
  std::vector<Device> devices = devices_under_test();
  devices.insert(devices.begin(), Device::reference);
  return devices;
}

// The contract of an op, or of several in a row: on every device finite, close to the reference,
// and the same bits again and with any number of threads.
template <class Program>
void expect_contract(Program&& program, const std::string& what, double bound = kFloatBound) {
  const Results reference = execute(Device::reference, program);
  expect_finite(reference, what + " on reference");
  expect_identical(execute(Device::reference, program, 3), reference, what + ", 3 threads");
  for (Device device : devices_under_test()) {
    const std::string where = what + " on " + name_of(device);
    const Results results = execute(device, program);
    expect_finite(results, where);
    expect_close(results, reference, bound, where);
    expect_identical(execute(device, program), results, where + ", again");
    for (int threads : {2, 5})
      expect_identical(execute(device, program, threads), results,
                       where + ", threads " + std::to_string(threads));
  }
}

}  // namespace kla::testing
