// Grids, arguments, shared memory, number types and the host's side of the runtime.
#include <bit>
#include <cmath>

#include "tests/simt/harness.h"

namespace kla::simt::testing {
namespace {

struct Seen {
  unsigned block[3], thread, grid[3], threads;
};

__global__ void grid_kernel(Seen* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  out[block * blockDim.x + threadIdx.x] = {{blockIdx.x, blockIdx.y, blockIdx.z},
                                           threadIdx.x,
                                           {gridDim.x, gridDim.y, gridDim.z},
                                           blockDim.x};
}

TEST(Launch, EveryThreadOfEveryBlockRunsOnceAndKnowsItsPlace) {
  const dim3 grid(3, 2, 4);
  constexpr unsigned kThreads = 45;
  for (int workers : {1, 3}) {
    Buffer<Seen> out(3 * 2 * 4 * kThreads);
    launch(context(workers), grid_kernel, {grid, kThreads}, out.data());
    const std::vector<Seen> got = out.host();
    size_t i = 0;
    for (unsigned z = 0; z < grid.z; ++z)
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x)
          for (unsigned t = 0; t < kThreads; ++t, ++i) {
            const Seen expected{{x, y, z}, t, {3, 2, 4}, kThreads};
            ASSERT_EQ(std::memcmp(&got[i], &expected, sizeof(Seen)), 0) << "thread " << i;
          }
  }
}

struct Pair {
  int a;
  double b;
};

__global__ void arguments_kernel(double* out, Pair pair, int64_t count, float factor) {
  pair.a += static_cast<int>(threadIdx.x);  // its own copy
  out[threadIdx.x] = pair.a * pair.b + static_cast<double>(count) * factor;
}

TEST(Launch, ArgumentsAreConvertedAndEachThreadHasItsOwn) {
  Buffer<double> out(3);
  launch(context(), arguments_kernel, {1, 3}, out.data(), Pair{10, 0.5}, 7, 2.0);
  EXPECT_EQ(out.host(), (std::vector<double>{19, 19.5, 20}));
}

TEST(Launch, DryRunsAndEmptyGridsDoNothing) {
  Context dry = context();
  dry.dry_run = true;
  launch(dry, grid_kernel, {1, 1}, nullptr);
  launch(context(), grid_kernel, {dim3(0, 1, 1), 1}, nullptr);
  launch(context(), grid_kernel, {dim3(1, 0, 1), 1}, nullptr);
  launch(context(), grid_kernel, {dim3(1, 1, 0), 1}, nullptr);
}

__global__ void sum_kernel(const float* in, float* out, int n) {
  SharedMemory shared;
  float* partial = shared.array<float>(static_cast<int>(blockDim.x));
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x))
    sum += in[static_cast<int>(blockIdx.x) * n + i];
  partial[threadIdx.x] = sum;
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    __syncthreads();
  }
  if (threadIdx.x == 0) out[blockIdx.x] = partial[0];
}

TEST(Launch, ResultsDependNeitherOnWorkersNorOnTheSchedule) {
  constexpr unsigned kBlocks = 11, kThreads = 128;
  constexpr int kCount = 1000;
  std::vector<float> values(kBlocks * kCount);
  for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<float>(i));
  const auto sums = [&](uint64_t seed, int workers) {
    const Schedule schedule(seed);
    Buffer<float> in(values), out(kBlocks);
    launch(context(workers), sum_kernel,
           {kBlocks, kThreads, SharedSize().array<float>(kThreads).bytes()}, in.data(), out.data(),
           kCount);
    return out.host();
  };
  const std::vector<float> first = sums(0, 1);
  EXPECT_TRUE(std::isfinite(first[0]));
  for (uint64_t seed : {0, 1, 2, 3})
    for (int workers : {1, 3}) EXPECT_EQ(sums(seed, workers), first);
}

struct Layout {
  float* a;
  double* b;
  uint4* c;
};

__global__ void layout_kernel(Layout* out) {
  SharedMemory shared;
  out[threadIdx.x].a = shared.array<float>(3);
  out[threadIdx.x].b = shared.array<double>(0);
  out[threadIdx.x].c = shared.array<uint4>(5);
}

TEST(Shared, ThreadsGetTheSameAlignedArrays) {
  Buffer<Layout> out(40);
  launch(context(), layout_kernel,
         {1, 40, SharedSize().array<float>(3).array<double>(0).array<uint4>(5).bytes()},
         out.data());
  const std::vector<Layout> got = out.host();
  for (const Layout& l : got) {
    EXPECT_EQ(std::memcmp(&l, &got[0], sizeof(l)), 0);
    for (const void* p :
         {static_cast<void*>(l.a), static_cast<void*>(l.b), static_cast<void*>(l.c)})
      EXPECT_EQ(reinterpret_cast<uintptr_t>(p) % SharedSize::kAlignment, 0u);
  }
}

TEST(Types, HaveTheSizesOfTheDevice) {
  static_assert(sizeof(float2) == 8 && alignof(float2) == 8);
  static_assert(sizeof(float3) == 12 && alignof(float3) == 4);
  static_assert(sizeof(float4) == 16 && alignof(float4) == 16);
  static_assert(sizeof(uint2) == 8 && alignof(uint2) == 8);
  static_assert(sizeof(uint4) == 16 && alignof(uint4) == 16);
  static_assert(sizeof(int4) == 16 && alignof(int4) == 16);
  static_assert(sizeof(bfloat16) == 2 && sizeof(__nv_bfloat162) == 4);
  static_assert(alignof(__nv_bfloat162) == 4);
}

TEST(Types, Bf16IsRoundedAsOnTheHost) {
  for (uint32_t high = 0; high < 0x10000; ++high)
    for (uint32_t low : {0x0000u, 0x0001u, 0x7FFFu, 0x8000u, 0x8001u, 0xFFFFu}) {
      const float x = std::bit_cast<float>(high << 16 | low);
      ASSERT_EQ(__float2bfloat16(x).bits, bf16(x).bits) << x;
      const auto bits = static_cast<unsigned short>(high);
      ASSERT_EQ(__float_as_uint(__bfloat162float(__ushort_as_bfloat16(bits))), high << 16);
    }
  const __nv_bfloat162 pair = __floats2bfloat162_rn(1.5f, -2.0f);
  EXPECT_EQ(__low2float(pair), 1.5f);
  EXPECT_EQ(__high2float(pair), -2.0f);
  EXPECT_EQ(std::bit_cast<uint32_t>(pair), 0xC0003FC0u);  // the low half holds the first
  EXPECT_EQ(__bfloat1622float2(pair).y, -2.0f);
}

TEST(Maths, IsThatOfTheHost) {
  for (float x : {-7.5f, -1.0f, -0.25f, 0.5f, 1.0f, 3.75f, 40.0f}) {
    EXPECT_FLOAT_EQ(__expf(x), std::exp(x));
    if (x > 0) {
      EXPECT_FLOAT_EQ(__logf(x), std::log(x));
      EXPECT_FLOAT_EQ(rsqrtf(x), 1 / std::sqrt(x));
      EXPECT_FLOAT_EQ(__frcp_rn(x), 1 / x);
    }
    EXPECT_EQ(__uint_as_float(__float_as_uint(x)), x);
    EXPECT_EQ(__fmaf_rn(x, 2.0f, 1.0f), std::fma(x, 2.0f, 1.0f));
  }
  EXPECT_EQ(__saturatef(-1), 0);
  EXPECT_EQ(__saturatef(NAN), 0);
  EXPECT_EQ(__saturatef(2), 1);
  EXPECT_EQ(max(NAN, 1.0f), 1.0f);
  EXPECT_EQ(min(3, -4), -4);
  EXPECT_EQ(__popc(0xF0F0u), 8);
  EXPECT_EQ(__clz(1), 31);
  EXPECT_EQ(__ffs(8), 4);
  EXPECT_EQ(__ffs(0), 0);
  EXPECT_EQ(__umulhi(0x80000000u, 6u), 3u);
}

TEST(Host, FreshMemoryIsNaN) {
  Buffer<float> fresh(1000);
  for (float x : fresh.host()) EXPECT_TRUE(std::isnan(x));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(fresh.data()) % 256, 0u);
  float* pinned = nullptr;
  EXPECT_EQ(cudaMallocHost(&pinned, sizeof(float)), cudaSuccess);
  EXPECT_TRUE(std::isnan(*pinned));
  EXPECT_EQ(cudaFreeHost(pinned), cudaSuccess);
}

TEST(Host, ADeviceThatIsTooSmallSaysSo) {
  void* memory = nullptr;
  EXPECT_EQ(cudaMalloc(&memory, size_t{1} << 60), cudaErrorMemoryAllocation);
  EXPECT_EQ(memory, nullptr);
  EXPECT_EQ(cudaPeekAtLastError(), cudaErrorMemoryAllocation);
  EXPECT_STREQ(cudaGetErrorString(cudaGetLastError()), "out of memory");
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

__global__ void double_kernel(float* x) {
  x[threadIdx.x] *= 2;
}

TEST(Host, AGraphIsRecordedAndReplayed) {
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
  Buffer<float> in(std::vector<float>{1, 2, 3}), x(std::vector<float>{9, 9, 9});
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  cudaMemcpyAsync(x.data(), in.data(), 3 * sizeof(float), cudaMemcpyDeviceToDevice, stream);
  launch(context(), double_kernel, {1, 2}, x.data());
  EXPECT_EQ(x.host(), (std::vector<float>{9, 9, 9})) << "captured work must not run";
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&executable, graph), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  for (float factor : {1.0f, 2.0f}) {
    for (int i = 0; i < 3; ++i) in.data()[i] = factor * static_cast<float>(i + 1);
    ASSERT_EQ(cudaGraphLaunch(executable, stream), cudaSuccess);
    EXPECT_EQ(x.host(), (std::vector<float>{2 * factor, 4 * factor, 3 * factor}));
  }
  EXPECT_EQ(cudaGraphExecDestroy(executable), cudaSuccess);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaSuccess);
}

}  // namespace
}  // namespace kla::simt::testing
