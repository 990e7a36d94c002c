// The matrix product of the device `simt` (kernels/cuda/gemm.h), where cuBLASLt cannot run: the
// CPU's product, on operands of the same values, rounded where the GPU's result would be.
#include "kernels/cuda/gemm.h"

#include <vector>

#include "core/bf16.h"
#include "core/error.h"
#include "kernels/cpu/panel_gemm.h"
#include "tests/simt/host_api.h"

namespace kla::simt {
namespace {

// A view as dense f32, in `copy` unless it is f32 already.
cpu::Tile as_float(const View& view, std::vector<float>& copy) {
  if (view.empty()) return {nullptr, 0};
  if (view.dtype == DType::f32) return cpu::tile(view);
  const bf16* values = view.as<bf16>();
  copy.reserve(static_cast<size_t>(view.size()));
  for (int64_t r = 0; r < view.rows(); ++r)
    for (int64_t c = 0; c < view.cols(); ++c)
      copy.push_back(static_cast<float>(values[r * view.stride + c]));
  return {copy.data(), view.cols()};
}

cpu::Form form_of(GemmForm form) {
  switch (form) {
    case GemmForm::plain:
      return cpu::Form::plain;
    case GemmForm::transposed_b:
      return cpu::Form::transposed_b;
    case GemmForm::transposed_a:
      return cpu::Form::transposed_a;
  }
  KLA_CHECK(false, "a form of product");
  return {};
}

void multiply(Context& context, const Gemm& g) {
  std::vector<float> a, b, added, sums;
  const bool rounds = g.c.dtype == DType::bf16;
  if (rounds) sums.resize(static_cast<size_t>(g.c.size()));
  cpu::panel_gemm(context,
                  {.form = form_of(g.form),
                   .m = g.c.rows(),
                   .n = g.c.cols(),
                   .k = g.form == GemmForm::transposed_a ? g.a.rows() : g.a.cols(),
                   .a = as_float(g.a, a),
                   .b = as_float(g.b, b),
                   .c = rounds ? cpu::MutableTile{sums.data(), g.c.cols()} : cpu::mutable_tile(g.c),
                   .added = as_float(g.added, added)});
  if (!rounds) return;
  bf16* c = g.c.as<bf16>();
  for (int64_t i = 0; i < g.c.size(); ++i)
    c[i / g.c.cols() * g.c.stride + i % g.c.cols()] = bf16(sums[static_cast<size_t>(i)]);
}

}  // namespace

void gemm(Context& context, const Gemm& g) {
  KLA_CHECK(g.a.dtype == g.b.dtype, g.a.describe() + " and " + g.b.describe());
  KLA_CHECK(g.added.empty() || g.added.dtype == g.c.dtype, g.added.describe());
  if (context.dry_run || g.a.size() == 0 || g.b.size() == 0) return;
  submit([context, g]() mutable { multiply(context, g); });
}

}  // namespace kla::simt
