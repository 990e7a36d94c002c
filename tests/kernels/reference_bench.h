// What the tests of the reference share: a context in double, tensors to feed it, finite
// differences.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/philox.h"
#include "core/thread_pool.h"
#include "kernels/ops.h"
#include "kernels/reference/matrix.h"

namespace kla::reference {

// A reference context and the tensors of a test.
class Bench {
 public:
  Bench() : pool_(1), scratch_("scratch", 1 << 24), tensors_("tensors", 1 << 25) {
    scratch_.poison(true);
    tensors_.poison(true);
    context = {Device::reference, DType::f64, DType::f64, &pool_, &scratch_};
  }
  View fresh(std::initializer_list<int64_t> dims) { return tensors_.allocate(DType::f64, dims); }
  // Where a parameter's gradient starts: not at zero, because backward adds.
  View ones(std::initializer_list<int64_t> dims) {
    const View v = fresh(dims);
    std::fill_n(v.as<double>(), v.size(), 1.0);
    return v;
  }
  View random(std::initializer_list<int64_t> dims, double low = -1, double high = 1) {
    const View v = fresh(dims);
    const RandomStream stream(11, "tensor " + std::to_string(++draws_));
    for (int64_t i = 0; i < v.size(); ++i)
      v.as<double>()[i] = stream.uniform(static_cast<uint64_t>(i), low, high);
    return v;
  }
  View flags(std::initializer_list<int64_t> dims, std::initializer_list<int64_t> set) {
    const View v = tensors_.allocate(DType::u8, dims);
    std::fill_n(v.as<uint8_t>(), v.size(), uint8_t{0});
    for (int64_t i : set) v.as<uint8_t>()[i] = 1;
    return v;
  }
  View positions(std::initializer_list<int64_t> values) {
    const View v = tensors_.allocate(DType::i64, {static_cast<int64_t>(values.size())});
    std::copy(values.begin(), values.end(), v.as<int64_t>());
    return v;
  }
  Context context;

 private:
  ThreadPool pool_;
  Arena scratch_, tensors_;
  int draws_ = 0;
};

inline double inner(const View& x, const View& y) {
  return dot(x.as<double>(), y.as<double>(), x.size());
}

// max |x - y| / max |y|.
inline double difference(const View& x, const View& y) {
  double error = 0, largest = 1e-300;
  for (int64_t i = 0; i < x.size(); ++i) {
    const double d = std::abs(x.as<double>()[i] - y.as<double>()[i]);
    error = d <= error ? error : d;  // keeps a NaN
    largest = std::max(largest, std::abs(y.as<double>()[i]));
  }
  return x.size() == 0 ? 0 : error / largest;
}

// A tensor and the gradient that backward gave it, starting from `start`.
struct Gradient {
  const char* name;
  View x, dx;
  double start = 0;
};

// Derivative of the loss along `direction`: two central differences, the leading error removed.
template <class Loss>
double slope(Loss&& loss, const View& x, const View& direction) {
  const std::vector<double> keep(x.as<double>(), x.as<double>() + x.size());
  auto central = [&](double h) {
    double sides[2];
    for (int side = 0; side < 2; ++side) {
      add_scaled(x.as<double>(), side ? -h : h, direction.as<double>(), x.size());
      sides[side] = loss();
      std::copy(keep.begin(), keep.end(), x.as<double>());
    }
    return (sides[0] - sides[1]) / (2 * h);
  };
  return (4 * central(5e-5) - central(1e-4)) / 3;
}

// Every gradient along a random direction. All tensors must be dense.
template <class Loss>
void check_gradients(Bench& bench, Loss&& loss, const std::vector<Gradient>& gradients,
                     const std::string& what) {
  for (const Gradient& g : gradients) {
    const View direction = bench.random({g.x.rows(), g.x.cols()});
    const double expected = slope(loss, g.x, direction);
    double actual = 0;
    for (int64_t i = 0; i < direction.size(); ++i)
      actual += (g.dx.as<double>()[i] - g.start) * direction.as<double>()[i];
    const double length = std::sqrt(inner(g.dx, g.dx) * inner(direction, direction));
    EXPECT_NEAR(actual, expected, 1e-8 * (length + 1)) << g.name << " of " << what;
  }
}

}  // namespace kla::reference
