// Language-model head and cross-entropy in one op (KERNEL_MATH 10.10), a chunk of tokens at a time:
// logits, their log-sum-exp, the gradient of the logits in their place, and the two products that
// use it. Only one chunk of logits exists: in the compute type for training, in f32 where only the
// losses are wanted, so that evaluation does not round them.
#include <algorithm>

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/ops.h"

namespace kla::KLA_BACKEND {
namespace {

constexpr unsigned kThreads = 512;

// A block per token. One pass for the largest logit and the sum of exponentials, rescaled whenever
// a larger one comes; with a gradient, a second pass that replaces the logits (64 KB a row at N =
// 32000, so it reads from L2). A target that is no token gives a NaN.
template <class T, int kWidth>
__global__ void cross_entropy_kernel(T* logits, float* losses, const int32_t* targets, int64_t N,
                                     float grad_scale, bool gradient) {
  SharedMemory shared;
  float* tops = shared.array<float>(kWarp);
  float* sums = shared.array<float>(kWarp);
  const int64_t m = blockIdx.x, target = targets[m], first = int64_t{threadIdx.x} * kWidth;
  constexpr int64_t kStep = int64_t{kThreads} * kWidth;
  T* row = logits + m * N;
  if (target < 0) {
    const float zeros[kWidth] = {};
    if (threadIdx.x == 0) losses[m] = 0;
    if (!gradient) return;
    for (int64_t n = first; n < N; n += kStep) store(row + n, zeros);
    return;
  }
  const float logit = target < N ? static_cast<float>(row[target]) : nanf("");

  float top = -INFINITY, sum = 0;
  for (int64_t n = first; n < N; n += kStep) {
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
  if (!gradient) return;

  const float factor = grad_scale / row_sum;
  for (int64_t n = first; n < N; n += kStep) {
    float z[kWidth];
    load(z, row + n);
    for (int i = 0; i < kWidth; ++i)
      z[i] = factor * expf(z[i] - row_top) - (n + i == target ? grad_scale : 0.0f);
    store(row + n, z);
  }
}

// As many as keep the logits within 512 MiB, at most 8192: enough for the products to fill a GPU.
int64_t tokens_per_chunk(int64_t M, const View& logit) {
  constexpr int64_t kMostTokens = 8192, kMostBytes = int64_t{512} << 20;
  const int64_t fitting = kMostBytes / std::max<int64_t>(1, logit.bytes());
  return std::min(M, std::clamp<int64_t>(fitting / 128 * 128, 128, kMostTokens));
}

template <class T>
void cross_entropy(Context& context, const LmHeadLoss& a, const View& logits, int64_t first) {
  const int64_t N = logits.cols();
  const Shape shape{dim3(static_cast<unsigned>(logits.rows())), kThreads,
                    SharedSize().array<float>(kWarp).array<float>(kWarp).bytes()};
  visit_width(
      [&]<int kWidth>(Width<kWidth>) {
        launch(context, cross_entropy_kernel<T, kWidth>, shape, pointer<T>(logits),
               pointer<float>(a.losses) + first, pointer<int32_t>(a.targets) + first, N,
               a.grad_scale, !a.dx.empty());
      },
      logits);
}

void loss(Context& context, const LmHeadLoss& a) {
  const int64_t M = a.x.rows(), N = a.w.rows();
  const bool gradient = !a.dx.empty();
  const DType type = gradient ? context.compute : DType::f32;
  const int64_t chunk = tokens_per_chunk(M, View(nullptr, type, {1, N}));
  const ArenaScope scope(*context.scratch);
  const View buffer = context.scratch->allocate(type, {chunk, N});
  for (int64_t first = 0; first < M; first += chunk) {
    const int64_t count = std::min(chunk, M - first);
    const View x = a.x.row_range(first, count), logits = buffer.row_range(0, count);
    gemm(context, {GemmForm::transposed_b, logits, x, a.w, View()});
    if (type == DType::bf16) {
      cross_entropy<bfloat16>(context, a, logits, first);
    } else {
      cross_entropy<float>(context, a, logits, first);
    }
    if (!gradient) continue;
    gemm(context, {GemmForm::plain, a.dx.row_range(first, count), logits, a.w, View()});
    gemm(context, {GemmForm::transposed_a, a.dw, logits, x, a.dw});
  }
}

KLA_OP(lm_head_loss, KLA_BACKEND, loss);

}  // namespace
}  // namespace kla::KLA_BACKEND
