// Language-model head and cross-entropy in one op (KERNEL_MATH 10.10), a chunk of tokens at a time:
// logits, their log-sum-exp and gradient, and the two products that use it. Only one chunk of
// logits exists. They stay in f32: rounded to bf16, a logit of 16 would be off by 0.03 and its
// probability by 3 %. Their gradient is an operand of products and has the compute type.
#include <algorithm>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/ops.h"

namespace kla::KLA_BACKEND {
namespace {

constexpr unsigned kMostThreads = 512;

// A block per token. One pass for the largest logit and the sum of exponentials, rescaled whenever
// a larger one comes; with a gradient, a second pass that writes it (128 KB a row at N = 32000, so
// it reads from L2). dlogits is null if there is none, and may be the memory of logits. A target
// that is no token gives a NaN.
template <class T, int kWidth>
__global__ void cross_entropy_kernel(T* dlogits, float* losses, const float* logits,
                                     const int32_t* targets, int64_t N, float grad_scale) {
  SharedMemory shared;
  float* tops = shared.array<float>(kWarp);
  float* sums = shared.array<float>(kWarp);
  const int64_t m = blockIdx.x, target = targets[m], first = int64_t{threadIdx.x} * kWidth;
  const int64_t step = int64_t{blockDim.x} * kWidth;
  const float* row = logits + m * N;
  if (target < 0) {
    const float zeros[kWidth] = {};
    if (threadIdx.x == 0) losses[m] = 0;
    if (!dlogits) return;
    for (int64_t n = first; n < N; n += step) store(dlogits + m * N + n, zeros);
    return;
  }
  const float logit = target < N ? row[target] : nanf("");

  float top = -INFINITY, sum = 0;
  for (int64_t n = first; n < N; n += step) {
    float z[kWidth];
    load(z, row + n);
    float larger = top;
    for (int i = 0; i < kWidth; ++i) larger = fmaxf(larger, z[i]);
    sum *= expf(top - larger);
    top = larger;
    for (int i = 0; i < kWidth; ++i) sum += expf(z[i] - top);
  }
  const float row_top = block_max(top, tops);
  const float row_sum = block_sum(sum == 0 ? 0 : sum * expf(top - row_top), sums);
  if (threadIdx.x == 0) losses[m] = logf(row_sum) + (row_top - logit);
  if (!dlogits) return;

  const float factor = grad_scale / row_sum;
  for (int64_t n = first; n < N; n += step) {
    float z[kWidth];
    load(z, row + n);
    for (int i = 0; i < kWidth; ++i)
      z[i] = factor * expf(z[i] - row_top) - (n + i == target ? grad_scale : 0.0f);
    store(dlogits + m * N + n, z);
  }
}

// As many as keep the logits within 1 GiB, at most 8192: enough for the products to fill a GPU.
int64_t tokens_per_chunk(int64_t M, int64_t N) {
  constexpr int64_t kMostTokens = 8192, kMostBytes = int64_t{1} << 30;
  const int64_t fitting = kMostBytes / std::max<int64_t>(1, N * size_of(DType::f32));
  return std::min(M, std::clamp<int64_t>(fitting / 128 * 128, 128, kMostTokens));
}

template <class T>
void cross_entropy(Context& context, const LmHeadLoss& a, const View& dlogits, const View& logits,
                   int64_t first) {
  const int64_t N = logits.cols();
  visit_width(
      [&]<int kWidth>(Width<kWidth>) {
        const Shape shape{dim3(static_cast<unsigned>(logits.rows())),
                          row_threads(N, kWidth, kMostThreads),
                          SharedSize().array<float>(kWarp).array<float>(kWarp).bytes()};
        launch(context, cross_entropy_kernel<T, kWidth>, shape, pointer<T>(dlogits),
               pointer<float>(a.losses) + first, pointer<float>(logits),
               pointer<int32_t>(a.targets) + first, N, a.grad_scale);
      },
      dlogits, logits);
}

void loss(Context& context, const LmHeadLoss& a) {
  const int64_t M = a.x.rows(), N = a.w.rows(), chunk = tokens_per_chunk(M, N);
  const bool gradient = !a.dx.empty(), in_place = context.compute == DType::f32;
  const ArenaScope scope(*context.scratch);
  const View all_logits = context.scratch->allocate(DType::f32, {chunk, N});
  View gradients;  // of the logits
  if (gradient)
    gradients = in_place ? all_logits : context.scratch->allocate(context.compute, {chunk, N});
  for (int64_t first = 0; first < M; first += chunk) {
    const int64_t count = std::min(chunk, M - first);
    const View x = a.x.row_range(first, count), logits = all_logits.row_range(0, count);
    const View dlogits = gradient ? gradients.row_range(0, count) : View();
    gemm(context, {GemmForm::transposed_b, logits, x, a.w, View()});
    visit_compute(context,
                  [&]<class T>(T) { cross_entropy<T>(context, a, dlogits, logits, first); });
    if (!gradient) continue;
    gemm(context, {GemmForm::plain, a.dx.row_range(first, count), dlogits, a.w, View()});
    gemm(context, {GemmForm::transposed_a, a.dw, dlogits, x, a.dw});
  }
}

KLA_OP(lm_head_loss, KLA_BACKEND, loss);

}  // namespace
}  // namespace kla::KLA_BACKEND
