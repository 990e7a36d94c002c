#include "kernels/cpu/yardstick.h"

#include <dnnl.h>
#include <hwy/targets.h>
#include <omp.h>

#include <algorithm>
#include <cstring>
#include <thread>

#include "core/clock.h"
#include "kernels/cpu/blocks.h"
#include "kernels/cpu/panel_gemm.h"

namespace kla::cpu {
namespace {

constexpr int64_t kCopied = 1 << 24;  // floats: 64 MB, more than a cache holds

// Floats of a, b and c.
struct Sizes {
  int64_t a = 0, b = 0, c = 0;
  explicit Sizes(const std::vector<Product>& products) {
    for (const Product& p : products) {
      a = std::max(a, p.m * p.k);
      b = std::max(b, p.k * p.n);
      c = std::max(c, p.m * p.n);
    }
  }
  int64_t bytes() const { return (a + b + c + 2 * kCopied) * 4 + 5 * Arena::kAlignment; }
};

Form form_of(const Product& p) {
  switch (p.form) {
    case Product::Form::forward:
      return Form::transposed_b;
    case Product::Form::input:
      return Form::plain;
    case Product::Form::weight:
      return Form::transposed_a;
  }
  return Form::plain;
}

PanelGemm operands_of(const Yardstick& o, const Product& p) {
  const Form form = form_of(p);
  const bool adds = form == Form::transposed_a;
  PanelGemm g{.form = form,
              .m = p.m,
              .n = p.n,
              .k = p.k,
              .a = {o.a.as<float>(), adds ? p.m : p.k},
              .b = {o.b.as<float>(), form == Form::transposed_b ? p.k : p.n},
              .c = {o.c.as<float>(), p.n}};
  if (adds) g.added = g.c;
  return g;
}

}  // namespace

Yardstick::Yardstick(Context& context, const std::vector<Product>& products)
    : memory("yardstick", Sizes(products).bytes()) {
  const Sizes sizes(products);
  a = memory.allocate(DType::f32, {sizes.a});
  b = memory.allocate(DType::f32, {sizes.b});
  c = memory.allocate(DType::f32, {sizes.c});
  from = memory.allocate(DType::f32, {kCopied});
  to = memory.allocate(DType::f32, {kCopied});
  for (const View& view : {a, b, c, from, to}) {
    const Blocks blocks{view.size(), 1 << 20};
    context.parallel(blocks.count(), [&](int64_t task, int) {
      float* x = view.as<float>() + blocks.first(task);
      for (int64_t i = 0; i < blocks.length(task); ++i)
        x[i] = static_cast<float>(i * 40503 % 65536) / 65536.0f - 0.5f;
    });
  }
}

double time_sgemm(const Yardstick& yardstick, const Product& p, int threads) {
  const PanelGemm g = operands_of(yardstick, p);
  omp_set_num_threads(threads);
  const auto start = Clock::now();
  dnnl_sgemm(g.form == Form::transposed_a ? 'T' : 'N', g.form == Form::transposed_b ? 'T' : 'N',
             g.m, g.n, g.k, 1.0f, g.a.data, g.a.ld, g.b.data, g.b.ld, g.added.data ? 1.0f : 0.0f,
             g.c.data, g.c.ld);
  const double seconds = seconds_since(start);
  omp_set_num_threads(1);
  // OpenMP's threads spin for a while before they sleep; they must not disturb what is timed next.
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  return seconds;
}

double time_panels(Context& context, const Yardstick& yardstick, const Product& p) {
  const auto start = Clock::now();
  panel_gemm(context, operands_of(yardstick, p));
  return seconds_since(start);
}

double copy_rate(Context& context, const Yardstick& yardstick) {
  const Blocks blocks{kCopied, 1 << 16};
  const auto start = Clock::now();
  context.parallel(blocks.count(), [&](int64_t task, int) {
    std::memcpy(yardstick.to.as<float>() + blocks.first(task),
                yardstick.from.as<float>() + blocks.first(task),
                static_cast<size_t>(blocks.length(task)) * sizeof(float));
  });
  return static_cast<double>(2 * kCopied) * sizeof(float) / seconds_since(start);
}

std::vector<std::string> library_versions() {
  const dnnl_version_t& v = *dnnl_version();
  const dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
  const std::pair<dnnl_cpu_isa_t, const char*> names[] = {
      {dnnl_cpu_isa_sse41, "SSE4.1"},
      {dnnl_cpu_isa_avx, "AVX"},
      {dnnl_cpu_isa_avx2, "AVX2"},
      {dnnl_cpu_isa_avx2_vnni, "AVX2 VNNI"},
      {dnnl_cpu_isa_avx512_core, "AVX-512"},
      {dnnl_cpu_isa_avx512_core_vnni, "AVX-512 VNNI"},
      {dnnl_cpu_isa_avx512_core_bf16, "AVX-512 BF16"},
      {dnnl_cpu_isa_avx512_core_amx, "AVX-512 AMX"}};
  std::string instructions = "unknown instructions";
  for (const auto& [value, name] : names)
    if (value == isa) instructions = name;
  const int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  const int64_t best = targets & -targets;  // the lowest bit
  return {"oneDNN " + std::to_string(v.major) + "." + std::to_string(v.minor) + "." +
              std::to_string(v.patch) + " (" + instructions + ")",
          std::string("Highway (") + hwy::TargetName(best) + ")"};
}

}  // namespace kla::cpu
