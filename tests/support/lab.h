// A lab runs a small program of ops on one device, twice: once as a dry run with a counting scratch
// arena and null tensors, then for real with exactly the scratch the plan found. All fresh memory
// is NaN, every tensor is a block of its own in the device's memory (on the host's heap, where
// AddressSanitizer sees what runs over), and column views lie in a wider matrix whose other columns
// must stay untouched.
//
// A program is a callable taking Lab&. It makes views from doubles, calls ops with lab(op, args)
// and names what it wants compared with lab.keep(). The same program runs on any device; values
// are rounded to f32 where they are drawn (draw.h), and those of compute tensors to the compute
// type asked for, on the reference as well, so that every device sees the same numbers.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "core/bf16.h"
#include "core/device.h"
#include "core/op.h"

namespace kla::testing {

using Values = std::vector<double>;
using Results = std::map<std::string, Values>;
using Dims = std::initializer_list<int64_t>;

inline ThreadPool& pool_of(int threads) {
  static std::map<int, std::unique_ptr<ThreadPool>> pools;
  std::unique_ptr<ThreadPool>& pool = pools[threads];
  if (!pool) pool = std::make_unique<ThreadPool>(threads);
  return *pool;
}

class Lab {
 public:
  static constexpr double kInitialGradient = 0.5;
  double initial_gradient = kInitialGradient;  // what accumulators hold before an op adds to them

  Lab(Device device, int threads, Arena& scratch, DType compute = DType::f32)
      : scratch_(scratch), rounding_(compute) {
    context_.device = device;
    context_.compute = compute;
    if (device == Device::reference) context_.compute = context_.accumulate = DType::f64;
    context_.pool = &pool_of(threads);
    context_.scratch = &scratch;
    context_.dry_run = scratch.counting();
  }

  bool planning() const { return context_.dry_run; }

  // Tensors: filled with values, or fresh (NaN). compute and acc as in kernels/ops.h.
  View compute(const Values& values, Dims dims) { return fill(compute(dims), rounded(values)); }
  View compute(Dims dims) { return fresh(context_.compute, dims); }
  View acc(const Values& values, Dims dims) { return fill(acc(dims), values); }
  View acc(Dims dims) { return fresh(context_.accumulate, dims); }
  View typed(DType dtype, const Values& values, Dims dims) {
    return fill(fresh(dtype, dims), values);
  }
  View typed(DType dtype, Dims dims) { return fresh(dtype, dims); }
  // Gradients of parameters, which ops add to.
  View accumulator(Dims dims) {
    View view = acc(dims);
    return fill(view, Values(static_cast<size_t>(view.size()), initial_gradient));
  }

  // Column views of a wider compute matrix, three columns in from the left and five from the right:
  // no alignment can be relied on. Or, if asked for, eight and eight, as the model's views lie.
  bool aligned_columns = false;
  View columns(const Values& values, Dims dims) { return fill(columns(dims), rounded(values)); }
  View columns(Dims dims) {
    const View shape(nullptr, context_.compute, dims);
    const int64_t left = aligned_columns ? 8 : 3, right = aligned_columns ? 8 : 5;
    const int64_t width = shape.cols() + left + right;
    View wide = fresh(context_.compute, {shape.rows(), width});
    wide_.push_back({wide, left, right});
    View view = shape;
    view.stride = width;
    if (wide.data) view.data = static_cast<std::byte*>(wide.data) + left * size_of(wide.dtype);
    return view;
  }

  template <class Args>
  void operator()(const Op<Args>& op, const std::type_identity_t<Args>& args) {
    op(context_, args);
    EXPECT_EQ(scratch_.used(), 0) << op.name() << " keeps scratch memory";
  }

  void keep(const std::string& name, const View& view) {
    if (!planning()) results_[name] = read(view);
  }
  Results& results() { return results_; }
  Values read(const View& view) const;
  void expect_margins_untouched() const;

 private:
  struct Wide {
    View view;
    int64_t left, right;
  };
  using Memory = std::unique_ptr<void, std::function<void(void*)>>;

  DeviceServices& services() const { return services_of(context_.device); }
  Values rounded(Values values) const;
  View fresh(DType dtype, Dims dims);
  View fill(View view, const Values& values) const;

  Context context_;
  Arena& scratch_;
  DType rounding_;
  std::vector<Memory> memory_;
  std::vector<Wide> wide_;
  Results results_;
};

template <class Visit>
void visit_type(DType dtype, Visit&& visit) {
  switch (dtype) {
    case DType::f64:
      return visit(double{});
    case DType::f32:
      return visit(float{});
    case DType::bf16:
      return visit(bf16{});
    case DType::i64:
      return visit(int64_t{});
    case DType::i32:
      return visit(int32_t{});
    case DType::u8:
      return visit(uint8_t{});
  }
  KLA_CHECK(false, name_of(dtype));
}

template <class T>
T from_double(double x) {
  if constexpr (std::is_same_v<T, bf16>) return bf16(static_cast<float>(x));
  if constexpr (!std::is_same_v<T, bf16>) return static_cast<T>(x);
}
template <class T>
double to_double(T x) {
  if constexpr (std::is_same_v<T, bf16>) return static_cast<float>(x);
  if constexpr (!std::is_same_v<T, bf16>) return static_cast<double>(x);
}

inline Values Lab::rounded(Values values) const {
  if (rounding_ == DType::bf16)
    for (double& x : values) x = to_double(from_double<bf16>(x));
  return values;
}

inline View Lab::fresh(DType dtype, Dims dims) {
  View view(nullptr, dtype, dims);
  if (planning()) return view;
  DeviceServices& memory = services();
  const int64_t bytes = std::max<int64_t>(1, view.bytes());
  memory_.emplace_back(memory.allocate(bytes), [&memory](void* p) { memory.release(p); });
  view.data = memory_.back().get();
  memory.fill(view.data, 0xFF, bytes);
  return view;
}

// Elements from the first of a view to the last, what lies between its rows included.
inline int64_t span_of(const View& view) {
  return view.size() == 0 ? 0 : (view.rows() - 1) * view.stride + view.cols();
}

inline View Lab::fill(View view, const Values& values) const {
  KLA_CHECK(static_cast<int64_t>(values.size()) == view.size(), view.describe());
  if (planning()) return view;
  visit_type(view.dtype, [&]<class T>(T) {
    std::vector<T> span(static_cast<size_t>(span_of(view)));
    const auto bytes = static_cast<int64_t>(span.size() * sizeof(T));
    services().download(span.data(), view.data, bytes);
    for (int64_t row = 0, i = 0; row < view.rows(); ++row)
      for (int64_t c = 0; c < view.cols(); ++c, ++i)
        span[static_cast<size_t>(row * view.stride + c)] =
            from_double<T>(values[static_cast<size_t>(i)]);
    services().upload(view.data, span.data(), bytes);
  });
  return view;
}

inline Values Lab::read(const View& view) const {
  Values values;
  visit_type(view.dtype, [&]<class T>(T) {
    std::vector<T> span(static_cast<size_t>(span_of(view)));
    services().download(span.data(), view.data, static_cast<int64_t>(span.size() * sizeof(T)));
    for (int64_t row = 0; row < view.rows(); ++row)
      for (int64_t c = 0; c < view.cols(); ++c)
        values.push_back(to_double(span[static_cast<size_t>(row * view.stride + c)]));
  });
  return values;
}

inline void Lab::expect_margins_untouched() const {
  for (const auto& [wide, left, right] : wide_) {
    std::vector<uint8_t> bytes(static_cast<size_t>(wide.bytes()));
    services().download(bytes.data(), wide.data, wide.bytes());
    const int64_t size = size_of(wide.dtype);
    int64_t touched = 0;
    for (int64_t i = 0; i < wide.bytes(); ++i) {
      const int64_t column = i / size % wide.cols();
      const bool margin = column < left || column >= wide.cols() - right;
      if (margin && bytes[static_cast<size_t>(i)] != 0xFF) ++touched;
    }
    EXPECT_EQ(touched, 0) << "an op wrote outside its columns of " << wide.describe();
  }
}

// The device simt draws the order of its threads by a seed (tests/simt/README.md). With several
// threads it is another order each time, which must not show in the results.
inline void draw_order(int threads) {
  static const char* const kSeed = "KLA_SIMT_SEED";
  static const std::string given = std::getenv(kSeed) ? std::getenv(kSeed) : "0";
  setenv(kSeed, threads == 1 ? given.c_str() : std::to_string(threads).c_str(), 1);
}

// Runs a program on a device: the dry run, then the real one with the planned scratch.
template <class Program>
Results execute(Device device, Program&& program, int threads = 1, DType compute = DType::f32) {
  draw_order(threads);
  Arena plan("plan");
  Lab dry(device, threads, plan, compute);
  program(dry);
  Arena scratch("scratch", plan.high_water(), &services_of(device));
  scratch.poison(true);
  Lab lab(device, threads, scratch, compute);
  program(lab);
  EXPECT_EQ(scratch.high_water(), plan.high_water()) << "the plan is not what was used";
  lab.expect_margins_untouched();
  return std::move(lab.results());
}

}  // namespace kla::testing
