#include "commands/yardstick.h"

#include <algorithm>
#include <cmath>

#include "core/bf16.h"
#include "core/clock.h"
#include "core/device.h"
#include "core/philox.h"
#include "kernels/cpu/yardstick.h"
#include "kernels/ops.h"

namespace kla {
namespace {

class CpuYardstick final : public Yardstick {
 public:
  CpuYardstick(Context& context, const std::vector<Product>& products)
      : context_(context), operands_(context, products) {}

  const char* library() const override { return "oneDNN"; }

  // Twice each: the second call finds its operands as warm as the other side's.
  void time(ProductTiming& t) const override {
    const double flops = t.product.flops();
    for (int turn = 0; turn < 2; ++turn)
      t.ours = std::max(t.ours, flops / cpu::time_panels(context_, operands_, t.product));
    for (int turn = 0; turn < 2; ++turn)
      t.library = std::max(t.library,
                           flops / cpu::time_sgemm(operands_, t.product, context_.pool->threads()));
  }
  double copy_rate() const override { return cpu::copy_rate(context_, operands_); }

 private:
  Context& context_;
  cpu::Yardstick operands_;
};

// Any other device: its own products and copies, many calls between two waits.
class DeviceYardstick final : public Yardstick {
 public:
  DeviceYardstick(Context& context, const std::vector<Product>& products)
      : context_(context), services_(services_of(context.device)) {
    int64_t a = 1, b = 1, c = 1;
    for (const Product& p : products) {
      a = std::max(a, p.m * p.k);
      b = std::max(b, p.k * p.n);
      c = std::max(c, p.m * p.n);
    }
    const int64_t copied = std::min<int64_t>(int64_t{1} << 30, services_.free_bytes() / 8);
    const int64_t compute = size_of(context.compute), acc = size_of(context.accumulate);
    memory_ = std::make_unique<Arena>(
        "yardstick", (a + b) * compute + c * acc + 2 * copied + 5 * Arena::kAlignment, &services_);
    a_ = memory_->allocate(context.compute, {a});
    b_ = memory_->allocate(context.compute, {b});
    c_ = memory_->allocate(context.accumulate, {c});
    from_ = memory_->allocate(DType::u8, {copied});
    to_ = memory_->allocate(DType::u8, {copied});
    fill(a_);
    fill(b_);
    services_.fill(c_.data, 0, c_.bytes());
    services_.fill(from_.data, 1, from_.bytes());
  }

  const char* library() const override { return "library"; }

  void time(ProductTiming& t) const override {
    run(t.product);
    const double once = seconds(1, [&] { run(t.product); });
    const int64_t calls = std::clamp<int64_t>(static_cast<int64_t>(kTurn / once), 1, 1000);
    t.library = std::max(t.library, t.product.flops() / seconds(calls, [&] { run(t.product); }));
  }
  double copy_rate() const override {
    const auto copy = [&] { services_.copy(to_.data, from_.data, to_.bytes()); };
    seconds(1, copy);
    return 2 * static_cast<double>(to_.bytes()) / seconds(20, copy);
  }

 private:
  static constexpr double kTurn = 0.02;  // seconds of work between two waits

  template <class Work>
  double seconds(int64_t calls, Work&& work) const {
    services_.synchronize();
    const auto start = Clock::now();
    for (int64_t i = 0; i < calls; ++i) work();
    services_.synchronize();
    return seconds_since(start) / static_cast<double>(calls);
  }

  // Uniform in (-1, 1): one block of random numbers, again and again.
  void fill(const View& view) const {
    const RandomStream random(1, "yardstick");
    const int64_t block = std::min<int64_t>(view.size(), 1 << 20), size = size_of(view.dtype);
    std::vector<float> values;
    for (int64_t i = 0; i < block; ++i)
      values.push_back(static_cast<float>(random.uniform(static_cast<uint64_t>(i), -1, 1)));
    const std::vector<bf16> rounded(values.begin(), values.end());
    const void* host = view.dtype == DType::bf16 ? static_cast<const void*>(rounded.data())
                                                 : static_cast<const void*>(values.data());
    for (int64_t i = 0; i < view.size(); i += block)
      services_.upload(static_cast<char*>(view.data) + i * size, host,
                       std::min(block, view.size() - i) * size);
  }

  void run(const Product& p) const {
    const auto matrix = [](const View& flat, DType type, int64_t rows, int64_t cols) {
      return View(flat.data, type, {rows, cols});
    };
    const DType compute = context_.compute, acc = context_.accumulate;
    switch (p.form) {
      case Product::Form::forward:
        return ops::matmul_forward(context_, {.y = matrix(c_, compute, p.m, p.n),
                                              .x = matrix(a_, compute, p.m, p.k),
                                              .w = matrix(b_, compute, p.n, p.k),
                                              .residual = {}});
      case Product::Form::input:
        return ops::matmul_backward_input(context_, {.dx = matrix(c_, compute, p.m, p.n),
                                                     .dy = matrix(a_, compute, p.m, p.k),
                                                     .w = matrix(b_, compute, p.k, p.n)});
      case Product::Form::weight:
        return ops::matmul_backward_weight(context_, {.dw = matrix(c_, acc, p.m, p.n),
                                                      .dy = matrix(a_, compute, p.k, p.m),
                                                      .x = matrix(b_, compute, p.k, p.n)});
    }
  }

  Context& context_;
  DeviceServices& services_;
  std::unique_ptr<Arena> memory_;
  View a_, b_, c_, from_, to_;
};

}  // namespace

std::unique_ptr<Yardstick> make_yardstick(Context& context, const std::vector<Product>& products) {
  if (context.device == Device::cpu) return std::make_unique<CpuYardstick>(context, products);
  return std::make_unique<DeviceYardstick>(context, products);
}

int64_t affordable_elements(Device device) {
  if (device == Device::cpu) return int64_t{1} << 26;
  return std::min(int64_t{1} << 31, services_of(device).free_bytes() / 16);
}

Product affordable(Product p, int64_t elements) {
  int64_t& tokens = p.form == Product::Form::weight ? p.k : p.m;
  while (tokens > 1 && std::max({p.m * p.k, p.k * p.n, p.m * p.n}) > elements) tokens /= 2;
  return p;
}

}  // namespace kla
