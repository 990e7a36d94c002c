// The matrix product on a GPU, by cuBLASLt. The library's first suggestion for a shape is taken and
// kept, so the same program gives the same bits; partial sums of a split product are added in f32
// in a fixed order. The workspace is scratch memory of a fixed size, planned by the dry run.
#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <map>
#include <string>

#include "core/error.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/runtime.h"

namespace kla::cuda {
namespace {

constexpr int64_t kWorkspace = 64 << 20, kWorkspaceAlignment = 256;

void check(cublasStatus_t status, const char* call, const std::string& what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(Exit::internal,
              std::string(call) + " failed for " + what + ": " + cublasLtGetStatusString(status),
              "CUBLASLT_LOG_LEVEL=5 makes cuBLASLt say why");
}

cudaDataType_t type_of(const View& view) {
  if (view.dtype == DType::bf16) return CUDA_R_16BF;
  KLA_CHECK(view.dtype == DType::f32, view.describe());
  return CUDA_R_32F;
}

// Bytes that the data and all rows are aligned to; the library's fast kernels want 16.
uint32_t alignment_of(const View& view) {
  const auto bits = reinterpret_cast<uintptr_t>(view.data) |
                    static_cast<uintptr_t>(view.stride * size_of(view.dtype)) | 256u;
  return static_cast<uint32_t>(bits & ~(bits - 1));
}

std::string describe(const Gemm& g) {
  const char* form = g.form == GemmForm::plain          ? " x "
                     : g.form == GemmForm::transposed_b ? " x transposed "
                                                        : " transposed x ";
  return g.c.describe() + " = " + g.a.describe() + form + g.b.describe() +
         (g.added.empty() ? "" : " + " + g.added.describe());
}

struct Layout {
  cublasLtMatrixLayout_t handle = nullptr;
  // The library counts columns first, so a row-major matrix is handed over as its transpose.
  explicit Layout(const View& view) {
    check(cublasLtMatrixLayoutCreate(&handle, type_of(view), static_cast<uint64_t>(view.cols()),
                                     static_cast<uint64_t>(view.rows()),
                                     std::max(view.stride, view.cols())),
          "cublasLtMatrixLayoutCreate", view.describe());
  }
  ~Layout() { cublasLtMatrixLayoutDestroy(handle); }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;
};

struct Product {
  cublasLtMatmulDesc_t handle = nullptr;
  // c^T = op(b)^T op(a)^T: the library's first operand is our b.
  explicit Product(const Gemm& g) {
    check(cublasLtMatmulDescCreate(&handle, CUBLAS_COMPUTE_32F, CUDA_R_32F),
          "cublasLtMatmulDescCreate", describe(g));
    set(CUBLASLT_MATMUL_DESC_TRANSA, g.form == GemmForm::transposed_b, g);
    set(CUBLASLT_MATMUL_DESC_TRANSB, g.form == GemmForm::transposed_a, g);
  }
  ~Product() { cublasLtMatmulDescDestroy(handle); }
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;

 private:
  void set(cublasLtMatmulDescAttributes_t attribute, bool transposed, const Gemm& g) {
    const cublasOperation_t operation = transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    check(cublasLtMatmulDescSetAttribute(handle, attribute, &operation, sizeof operation),
          "cublasLtMatmulDescSetAttribute", describe(g));
  }
};

struct Preference {
  cublasLtMatmulPreference_t handle = nullptr;
  explicit Preference(const Gemm& g) {
    check(cublasLtMatmulPreferenceCreate(&handle), "cublasLtMatmulPreferenceCreate", describe(g));
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspace));
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    const View& added = g.added.empty() ? g.c : g.added;
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(g.b));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(g.a));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(added));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(g.c));
  }
  ~Preference() { cublasLtMatmulPreferenceDestroy(handle); }
  Preference(const Preference&) = delete;
  Preference& operator=(const Preference&) = delete;

 private:
  template <class T>
  void set(cublasLtMatmulPreferenceAttributes_t attribute, T value) {
    check(cublasLtMatmulPreferenceSetAttribute(handle, attribute, &value, sizeof value),
          "cublasLtMatmulPreferenceSetAttribute", "a preference");
  }
};

cublasLtHandle_t library() {
  static const cublasLtHandle_t handle = [] {
    cublasLtHandle_t created = nullptr;
    check(cublasLtCreate(&created), "cublasLtCreate", "this GPU");
    return created;
  }();
  return handle;
}

// Everything the library's choice may depend on.
using Key = std::array<int64_t, 15>;
Key key_of(const Gemm& g) {
  const View& added = g.added.empty() ? g.c : g.added;
  return {static_cast<int64_t>(g.form),
          static_cast<int64_t>(g.a.dtype),
          static_cast<int64_t>(g.c.dtype),
          g.a.rows(),
          g.a.cols(),
          g.c.cols(),
          g.a.stride,
          g.b.stride,
          g.c.stride,
          added.stride,
          g.added.empty() ? 0 : 1,
          alignment_of(g.a),
          alignment_of(g.b),
          alignment_of(g.c),
          alignment_of(added)};
}

void multiply(const Gemm& g, void* workspace) {
  static std::map<Key, cublasLtMatmulAlgo_t> chosen;
  const View& added = g.added.empty() ? g.c : g.added;
  const Layout a(g.a), b(g.b), c(g.c), added_layout(added);
  const Product product(g);
  const Key key = key_of(g);
  auto found = chosen.find(key);
  if (found == chosen.end()) {
    const Preference preference(g);
    cublasLtMatmulHeuristicResult_t best{};
    int count = 0;
    check(cublasLtMatmulAlgoGetHeuristic(library(), product.handle, b.handle, a.handle,
                                         added_layout.handle, c.handle, preference.handle, 1, &best,
                                         &count),
          "cublasLtMatmulAlgoGetHeuristic", describe(g));
    KLA_CHECK(count > 0, "cuBLASLt has no kernel for " + describe(g));
    found = chosen.emplace(key, best.algo).first;
  }
  const float one = 1, keep = g.added.empty() ? 0.0f : 1.0f;
  check(cublasLtMatmul(library(), product.handle, &one, g.b.data, b.handle, g.a.data, a.handle,
                       &keep, added.data, added_layout.handle, g.c.data, c.handle, &found->second,
                       workspace, static_cast<size_t>(kWorkspace), stream()),
        "cublasLtMatmul", describe(g));
}

}  // namespace

void gemm(Context& context, const Gemm& g) {
  KLA_CHECK(g.a.dtype == g.b.dtype, describe(g));
  KLA_CHECK(g.added.empty() || g.added.dtype == g.c.dtype, describe(g));
  const ArenaScope scope(*context.scratch);
  auto* workspace = context.scratch->allocate<uint8_t>(kWorkspace + kWorkspaceAlignment);
  if (context.dry_run || g.a.size() == 0 || g.b.size() == 0) return;
  workspace += kWorkspaceAlignment - reinterpret_cast<uintptr_t>(workspace) % kWorkspaceAlignment;
  multiply(g, workspace);
}

}  // namespace kla::cuda
