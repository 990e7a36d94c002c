// The matrix product on a GPU, by cuBLASLt. The library's first suggestion for a shape is taken and
// kept, so the same program gives the same bits; partial sums of a split product are added in f32
// in a fixed order. The workspace is scratch memory of a fixed size, planned by the dry run.
#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/error.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/matmul_choices.h"
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

// One product as the library takes it.
class Call {
 public:
  explicit Call(const Gemm& g)
      : g_(g),
        added_(g.added.empty() ? g.c : g.added),
        product_(g),
        a_(g.a),
        b_(g.b),
        c_(g.c),
        added_layout_(added_) {}

  // The library's suggestions, the one it takes for the fastest first; at least one.
  std::vector<cublasLtMatmulAlgo_t> suggestions(int most) const {
    const Preference preference(g_);
    std::vector<cublasLtMatmulHeuristicResult_t> results(static_cast<size_t>(most));
    int count = 0;
    check(cublasLtMatmulAlgoGetHeuristic(library(), product_.handle, b_.handle, a_.handle,
                                         added_layout_.handle, c_.handle, preference.handle, most,
                                         results.data(), &count),
          "cublasLtMatmulAlgoGetHeuristic", describe(g_));
    std::vector<cublasLtMatmulAlgo_t> algorithms;
    for (int i = 0; i < count; ++i) algorithms.push_back(results[static_cast<size_t>(i)].algo);
    KLA_CHECK(!algorithms.empty(), "cuBLASLt has no kernel for " + describe(g_));
    return algorithms;
  }

  cublasStatus_t run(const cublasLtMatmulAlgo_t& algorithm, void* result, void* workspace) const {
    const float one = 1, keep = g_.added.empty() ? 0.0f : 1.0f;
    return cublasLtMatmul(library(), product_.handle, &one, g_.b.data, b_.handle, g_.a.data,
                          a_.handle, &keep, added_.data, added_layout_.handle, result, c_.handle,
                          &algorithm, workspace, static_cast<size_t>(kWorkspace), stream());
  }

 private:
  const Gemm& g_;
  const View& added_;
  Product product_;
  Layout a_, b_, c_, added_layout_;
};

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

std::string text_of(const Key& key) {
  std::string text =
      services_of(Device::cuda).describe() + ", cuBLASLt " + std::to_string(cublasLtGetVersion());
  for (int64_t number : key) text += ' ' + std::to_string(number);
  return text;
}

// Seconds of one call, the best of a few; infinite if the algorithm does not run.
double seconds_of(const Call& call, const cublasLtMatmulAlgo_t& algorithm, void* result,
                  void* workspace) {
  constexpr int kTurns = 4;  // the first of them warms up
  using Clock = std::chrono::steady_clock;
  DeviceServices& gpu = services_of(Device::cuda);
  double best = HUGE_VAL;
  gpu.synchronize();
  for (int turn = 0; turn < kTurns; ++turn) {
    const Clock::time_point begin = Clock::now();
    if (call.run(algorithm, result, workspace) != CUBLAS_STATUS_SUCCESS) return HUGE_VAL;
    gpu.synchronize();
    if (turn > 0)
      best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return best;
}

// Results go to memory of their own, since a product may add to its result.
cublasLtMatmulAlgo_t fastest(const Gemm& g, const Call& call, void* workspace) {
  constexpr int kCandidates = 8;
  const std::vector<cublasLtMatmulAlgo_t> candidates = call.suggestions(kCandidates);
  DeviceServices& gpu = services_of(Device::cuda);
  void* result = gpu.allocate(g.c.rows() * g.c.stride * size_of(g.c.dtype));
  if (!result) return candidates.front();  // no room to try
  const cublasLtMatmulAlgo_t* best = &candidates.front();
  double best_seconds = HUGE_VAL;
  for (const cublasLtMatmulAlgo_t& candidate : candidates) {
    const double seconds = seconds_of(call, candidate, result, workspace);
    if (seconds < best_seconds) {
      best_seconds = seconds;
      best = &candidate;
    }
  }
  gpu.release(result);
  return *best;
}

cublasLtMatmulAlgo_t choose(const Gemm& g, const Call& call, void* workspace) {
  static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(Algorithm));
  MatmulChoices* choices = MatmulChoices::of_environment();
  if (!choices) return call.suggestions(1).front();
  const std::string product = text_of(key_of(g));
  if (const auto found = choices->find(product)) return std::bit_cast<cublasLtMatmulAlgo_t>(*found);
  const cublasLtMatmulAlgo_t algorithm = fastest(g, call, workspace);
  choices->add(product, std::bit_cast<Algorithm>(algorithm));
  return algorithm;
}

void multiply(const Gemm& g, void* workspace) {
  static std::map<Key, cublasLtMatmulAlgo_t> chosen;
  const Call call(g);
  const Key key = key_of(g);
  auto found = chosen.find(key);
  if (found == chosen.end()) found = chosen.emplace(key, choose(g, call, workspace)).first;
  check(call.run(found->second, g.c.data, workspace), "cublasLtMatmul", describe(g));
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
