// The second pass of every sum over rows: the blocks' partial sums, added in a fixed order.
#include "kernels/cuda/reduce.cuh"

namespace kla::KLA_BACKEND {
namespace {

constexpr int kGroups = 16;  // warps of a block; each adds every 16th row, lane by column

__global__ void add_partial_sums_kernel(float* sum, const float* partial, int64_t rows, int64_t C) {
  SharedMemory shared;
  float* group_sums = shared.array<float>(kGroups * kWarp);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int group = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t c = int64_t{blockIdx.x} * kWarp + lane;
  float total = 0;
  if (c < C) {
#pragma unroll 8
    for (int64_t row = group; row < rows; row += kGroups) total += partial[row * C + c];
  }
  group_sums[group * kWarp + lane] = total;
  __syncthreads();
  if (group != 0 || c >= C) return;
  total = 0;
  for (int g = 0; g < kGroups; ++g) total += group_sums[g * kWarp + lane];
  sum[c] += total;
}

}  // namespace

void add_partial_sums(const Context& context, const View& partial, const View& sum) {
  const int64_t rows = partial.rows(), C = partial.cols();
  if (rows == 0) return;
  const Shape shape{dim3(static_cast<unsigned>((C + kWarp - 1) / kWarp)), kGroups * kWarp,
                    SharedSize().array<float>(kGroups * kWarp).bytes()};
  launch(context, add_partial_sums_kernel, shape, pointer<float>(sum), pointer<float>(partial),
         rows, C);
}

}  // namespace kla::KLA_BACKEND
