// What the tests of the reference share: a context in double, tensors to feed it, and two measures.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>

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
  View zeros(std::initializer_list<int64_t> dims) {
    const View v = fresh(dims);
    std::fill_n(v.as<double>(), v.size(), 0.0);
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

}  // namespace kla::reference
