// Kernels with a planted fault: the device must report each.
#include <algorithm>
#include <cmath>

#include "tests/simt/harness.h"

namespace kla::simt::testing {
namespace {

constexpr unsigned kThreads = 128;

size_t floats(int64_t count) {
  return SharedSize().array<float>(count).bytes();
}

// Reverses a block's values twice, through shared memory. `barriers` of the three are there.
__global__ void reverse_kernel(float* x, int missing) {
  SharedMemory shared;
  float* cell = shared.array<float>(kThreads);
  const unsigned i = threadIdx.x;
  float mine = x[i];
  cell[i] = mine;
  if (missing != 0) __syncthreads();
  mine = cell[kThreads - 1 - i] + 1;
  if (missing != 1) __syncthreads();
  cell[i] = mine;
  if (missing != 2) __syncthreads();
  x[i] = cell[kThreads - 1 - i];
}

std::vector<float> reversed_twice(uint64_t seed, int missing) {
  const Schedule schedule(seed);
  std::vector<float> values(kThreads);
  for (unsigned i = 0; i < kThreads; ++i) values[i] = static_cast<float>(i);
  Buffer<float> x(values);
  launch(context(), reverse_kernel, {1, kThreads, floats(kThreads)}, x.data(), missing);
  return x.host();
}

bool right(const std::vector<float>& x) {
  for (unsigned i = 0; i < kThreads; ++i)
    if (x[i] != static_cast<float>(i) + 1) return false;
  return true;
}

TEST(Fault, ARemovedBarrierComputesWrongNumbers) {
  for (uint64_t seed : {0, 1, 2, 3, 4, 5, 6, 7}) {
    EXPECT_TRUE(right(reversed_twice(seed, -1))) << "seed " << seed;
    for (int missing : {0, 1, 2})
      EXPECT_FALSE(right(reversed_twice(seed, missing)))
          << "barrier " << missing << " seed " << seed;
  }
}

TEST(Fault, AFaultIsTheSameForTheSameSeed) {
  for (uint64_t seed : {1, 2, 3}) {
    const std::vector<float> once = reversed_twice(seed, 0), again = reversed_twice(seed, 0);
    EXPECT_EQ(std::memcmp(once.data(), again.data(), once.size() * sizeof(float)), 0);
  }
}

// Right in the order of the lanes only, so a schedule must shuffle to find it.
__global__ void prefix_kernel(int* out) {
  SharedMemory shared;
  int* sum = shared.array<int>(32);
  const unsigned lane = threadIdx.x;
  sum[lane] = lane == 0 ? 1 : sum[lane - 1] + 1;
  __syncwarp();
  out[lane] = sum[lane];
}

TEST(Fault, ShuffledSchedulesFindWhatRoundRobinHides) {
  const auto last = [](uint64_t seed) {
    const Schedule schedule(seed);
    Buffer<int> out(32);
    launch(context(), prefix_kernel, {1, 32, SharedSize().array<int>(32).bytes()}, out.data());
    return out.host()[31];
  };
  EXPECT_EQ(last(0), 32);
  for (uint64_t seed : {1, 2, 3, 4}) EXPECT_NE(last(seed), 32) << "seed " << seed;
}

__global__ void missing_syncwarp_kernel(float* out) {
  SharedMemory shared;
  bfloat16* tile = shared.array<bfloat16>(8 * 32);
  const unsigned lane = threadIdx.x;
  for (unsigned j = 0; j < 8; ++j) tile[(31 - lane) * 8 + j] = bfloat16(1.0f);
  uint32_t r[4];
  ldmatrix_x4(r, tile + lane * 8);  // rows of other lanes
  float sum = 0;
  for (uint32_t pair : r) sum += __uint_as_float(pair << 16) + __uint_as_float(pair & 0xFFFF0000u);
  out[lane] = sum;
}

TEST(Fault, AMissingWarpBarrierBeforeLdmatrixIsNaN) {
  Buffer<float> out(32);
  launch(context(), missing_syncwarp_kernel, {1, 32, SharedSize().array<bfloat16>(256).bytes()},
         out.data());
  const std::vector<float> got = out.host();
  EXPECT_TRUE(std::any_of(got.begin(), got.end(), [](float x) { return std::isnan(x); }));
}

__global__ void unwritten_kernel(float* out) {
  SharedMemory shared;
  float* cell = shared.array<float>(kThreads);
  const unsigned i = threadIdx.x;
  if (i != 77) cell[i] = 1;  // the fault
  __syncthreads();
  out[i] = cell[kThreads - 1 - i] + 1;
}

TEST(Fault, UnwrittenSharedMemoryIsNaN) {
  Buffer<float> out(kThreads);
  for (int i = 0; i < 2; ++i) {  // the second block must not find what the first left
    launch(context(), unwritten_kernel, {1, kThreads, floats(kThreads)}, out.data());
    const std::vector<float> got = out.host();
    for (unsigned t = 0; t < kThreads; ++t)
      EXPECT_EQ(std::isnan(got[t]), t == kThreads - 1 - 77) << "thread " << t;
  }
}

__global__ void out_of_bounds_kernel(int offset) {
  SharedMemory shared;
  float* first = shared.array<float>(kThreads);
  float* second = shared.array<float>(5);
  if (threadIdx.x == 0) (offset < 0 ? first : second)[offset] = 1;
  __syncthreads();
}

// Element 5 lies within the 128 bytes that the device rounds the array up to.
TEST(Fault, AnOutOfBoundsWriteIsReported) {
  const auto run = [](int offset) {
    launch(context(), out_of_bounds_kernel,
           {1, kThreads, SharedSize().array<float>(kThreads).array<float>(5).bytes()}, offset);
  };
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  run(4);
  for (int offset : {5, 31, 32, 60, -1, -20}) {
#ifdef __SANITIZE_ADDRESS__
    EXPECT_DEATH(run(offset), "use-after-poison") << offset;
#else
    const std::string message = error_of([&] { run(offset); });
    EXPECT_NE(message.find("out of bounds"), std::string::npos) << offset << ": " << message;
    EXPECT_NE(message.find("out_of_bounds_kernel"), std::string::npos) << message;
    EXPECT_NE(message.find(offset < 0 ? "shared array 0 of 512" : "shared array 1 of 20"),
              std::string::npos)
        << message;
#endif
  }
  run(4);  // the device works on
}

__global__ void divergent_barrier_kernel(float* x, unsigned limit) {
  if (threadIdx.x < limit) __syncthreads();
  x[threadIdx.x] = 1;
}

TEST(Fault, ABarrierThatSomeThreadsNeverReachIsReported) {
  for (uint64_t seed : {0, 1, 2}) {
    const Schedule schedule(seed);
    Buffer<float> x(kThreads);
    const std::string message = error_of([&] {
      launch(context(), divergent_barrier_kernel, {dim3(1, 1), kThreads}, x.data(), 96u);
    });
    for (const char* part : {"block (0,0,0)", "96 threads wait at __syncthreads (faults_test.cpp:",
                             "32 threads have returned", "(96,0,0)"})
      EXPECT_NE(message.find(part), std::string::npos) << part << " in " << message;
    launch(context(), divergent_barrier_kernel, {1, kThreads}, x.data(), kThreads);
    EXPECT_EQ(x.host()[0], 1);
  }
}

__global__ void two_barriers_kernel() {
  if (threadIdx.x < 64)
    __syncthreads();
  else
    __syncthreads();
}

TEST(Fault, ThreadsAtDifferentBarriersAreReported) {
  const std::string message = error_of([] {
    launch(context(), two_barriers_kernel, {1, kThreads});
  });
  EXPECT_NE(message.find("another barrier"), std::string::npos) << message;
  EXPECT_NE(message.find("thread (64,0,0)"), std::string::npos) << message;
}

enum class WarpFault { lane_missing, two_places, not_in_mask, outside_source, beyond_block };

__global__ void warp_fault_kernel(WarpFault fault) {
  const unsigned lane = threadIdx.x;
  if (lane >= 32 && fault != WarpFault::beyond_block) return;
  switch (fault) {
    case WarpFault::lane_missing:
      if (lane != 7) __syncwarp();
      break;
    case WarpFault::two_places:
      if (lane < 7)
        __syncwarp();
      else
        __shfl_sync(0xFFFFFFFF, 1, 0);
      break;
    case WarpFault::not_in_mask:
      if (lane == 3) __syncwarp(0xF0);
      break;
    case WarpFault::outside_source:
      if (lane < 4) __shfl_sync(0xF, 1, 4);
      break;
    case WarpFault::beyond_block:
      if (lane >= 32) __syncwarp();
      break;
  }
}

TEST(Fault, DivergedWarpsAreReported) {
  const auto message = [](WarpFault fault) {
    return error_of([&] { launch(context(), warp_fault_kernel, {1, 40}, fault); });
  };
  const std::pair<WarpFault, const char*> faults[] = {
      {WarpFault::lane_missing, "threads wait at __syncwarp"},
      {WarpFault::two_places, "other lanes of the warp are at __syncwarp"},
      {WarpFault::not_in_mask, "does not hold the calling lane"},
      {WarpFault::outside_source, "reads lane 4, which is not in the mask"},
      {WarpFault::beyond_block, "lanes that the block does not have"}};
  for (const auto& [fault, part] : faults) {
    const std::string text = message(fault);
    EXPECT_NE(text.find(part), std::string::npos) << part << " in: " << text;
  }
}

__global__ void shared_kernel(int first, int second) {
  SharedMemory shared;
  shared.array<float>(first);
  shared.array<float>(second);
}

TEST(Fault, MoreSharedMemoryThanDeclaredIsReported) {
  const auto message = [](size_t declared, int first, int second) {
    return error_of([&] { launch(context(), shared_kernel, {1, 1, declared}, first, second); });
  };
  EXPECT_EQ(message(floats(33) + floats(1), 33, 1), "");
  const std::string over = message(floats(33) + floats(1), 33, 33);
  EXPECT_NE(over.find("the arrays take 512 bytes, the launch declares 384"), std::string::npos)
      << over;
  EXPECT_EQ(message(163 * 1024, 40 * 1024, 700), "");
  const std::string limit = message(163 * 1024 + 1, 1, 1);
  EXPECT_NE(limit.find("a block has 166912"), std::string::npos) << limit;
}

__global__ void different_arrays_kernel() {
  SharedMemory shared;
  shared.array<float>(threadIdx.x < 5 ? 8 : 16);
}

TEST(Fault, ThreadsThatAskForDifferentArraysAreReported) {
  const std::string message = error_of([] {
    launch(context(), different_arrays_kernel, {1, 32, 4096});
  });
  EXPECT_NE(message.find("array 0 has 64 bytes here and 32"), std::string::npos) << message;
}

enum class AsyncFault { none, no_wait, no_commit, no_barrier, too_many_pending };

__global__ void async_kernel(const float4* in, float* out, AsyncFault fault) {
  SharedMemory shared;
  float4* stage = shared.array<float4>(kThreads);
  const unsigned i = threadIdx.x;
  cp_async_16(stage + i, in + i, true);
  if (fault != AsyncFault::no_commit) cp_async_commit();
  if (fault == AsyncFault::too_many_pending)
    cp_async_wait<1>();
  else if (fault != AsyncFault::no_wait)
    cp_async_wait<0>();
  if (fault != AsyncFault::no_barrier) __syncthreads();
  out[i] = stage[kThreads - 1 - i].y;
}

TEST(Fault, AnAsynchronousCopyNobodyWaitedForIsNaN) {
  for (uint64_t seed : {0, 1, 2, 3})
    for (AsyncFault fault : {AsyncFault::none, AsyncFault::no_wait, AsyncFault::no_commit,
                             AsyncFault::no_barrier, AsyncFault::too_many_pending}) {
      const Schedule schedule(seed);
      Buffer<float4> in(std::vector<float4>(kThreads, float4{1, 2, 3, 4}));
      Buffer<float> out(kThreads);
      launch(context(), async_kernel, {1, kThreads, SharedSize().array<float4>(kThreads).bytes()},
             in.data(), out.data(), fault);
      const std::vector<float> got = out.host();
      const auto wrong = std::count_if(got.begin(), got.end(), [](float x) { return x != 2; });
      if (fault == AsyncFault::none) {
        EXPECT_EQ(wrong, 0);
      } else {
        EXPECT_GT(wrong, 0) << "fault " << static_cast<int>(fault) << " seed " << seed;
      }
    }
}

// A stage is filled again while other threads may still read it.
__global__ void early_copy_kernel(const float4* in, float* out, bool barrier) {
  SharedMemory shared;
  float4* stage = shared.array<float4>(kThreads);
  const unsigned i = threadIdx.x;
  stage[i] = in[0];
  __syncthreads();
  out[i] = stage[kThreads - 1 - i].x;
  if (barrier) __syncthreads();
  cp_async_16(stage + i, in + 1, true);
  cp_async_commit();
  cp_async_wait<0>();
}

TEST(Fault, ACopyIntoAStageStillReadNeedsABarrier) {
  for (uint64_t seed : {0, 1, 2, 3})
    for (bool barrier : {true, false}) {
      const Schedule schedule(seed);
      Buffer<float4> in(std::vector<float4>{{1, 1, 1, 1}, {2, 2, 2, 2}});
      Buffer<float> out(kThreads);
      const size_t bytes = SharedSize().array<float4>(kThreads).bytes();
      launch(context(), early_copy_kernel, {1, kThreads, bytes}, in.data(), out.data(), barrier);
      EXPECT_EQ(out.host() == std::vector<float>(kThreads, 1.0f), barrier) << "seed " << seed;
    }
}

__global__ void address_kernel(const float* in, int fault) {
  SharedMemory shared;
  float* tile = shared.array<float>(64);
  uint32_t r[4];
  if (fault == 0) ldmatrix_x4(r, tile + threadIdx.x % 8 * 4 + 1);
  if (fault == 1) ldmatrix_x4(r, tile + threadIdx.x * 4);  // 128 floats
  if (fault == 2) cp_async_16(tile + 2, in, true);
  if (fault == 3) cp_async_16(tile, in + 1, true);
  if (fault == 4) cp_async_16(tile + 64, in, true);
}

TEST(Fault, WrongAddressesOfWideCopiesAreReported) {
  const char* parts[] = {"ldmatrix_x4 (", "outside of the shared arrays", "cp_async_16 (",
                         "the global address is not a multiple of 16",
                         "outside of the shared arrays"};
  Buffer<float> in(std::vector<float>(16, 0));
  for (int fault = 0; fault < 5; ++fault) {
    const std::string message = error_of([&] {
      launch(context(), address_kernel, {1, 32, floats(64)}, in.data(), fault);
    });
    EXPECT_NE(message.find(parts[fault]), std::string::npos) << fault << ": " << message;
  }
}

__global__ void trap_kernel() {
  if (blockIdx.x == 2 && threadIdx.x == 9) __trap();
}

TEST(Fault, AnErrorNamesBlockThreadAndPlaceAndTheDeviceGoesOn) {
  for (int workers : {1, 3}) {
    const std::string message = error_of([&] { launch(context(workers), trap_kernel, {4, 32}); });
    EXPECT_NE(message.find("block (2,0,0), thread (9,0,0), __trap (faults_test.cpp:"),
              std::string::npos)
        << message;
    EXPECT_TRUE(right(reversed_twice(0, -1)));
  }
}

TEST(Fault, AnOversizedLaunchIsRefused) {
  EXPECT_NE(error_of([] {
              launch(context(), trap_kernel, {1, 1025});
            }).find("1025 threads"),
            std::string::npos);
  EXPECT_NE(error_of([] {
              launch(context(), trap_kernel, {dim3(1, 65536), 32});
            }).find("65536"),
            std::string::npos);
}

}  // namespace
}  // namespace kla::simt::testing
