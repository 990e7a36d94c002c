// Every warp operation, barrier and atomic of the simt device against plain host code, with the
// default schedule and with shuffled ones.
#include <functional>

#include "tests/simt/harness.h"

namespace kla::simt::testing {
namespace {

constexpr int kLanes = 32;
constexpr unsigned kAll = 0xFFFFFFFF;
constexpr uint64_t kSeeds[] = {0, 1, 2, 3};

enum class Shuffle { index, up, down, exclusive_or };

template <class T>
__global__ void shuffle_kernel(T* out, Shuffle kind, int argument, int width) {
  const T mine = static_cast<T>(threadIdx.x + 100);
  const auto distance = static_cast<unsigned>(argument);
  T got = 0;
  if (kind == Shuffle::index) got = __shfl_sync(kAll, mine, argument, width);
  if (kind == Shuffle::up) got = __shfl_up_sync(kAll, mine, distance, width);
  if (kind == Shuffle::down) got = __shfl_down_sync(kAll, mine, distance, width);
  if (kind == Shuffle::exclusive_or) got = __shfl_xor_sync(kAll, mine, argument, width);
  out[threadIdx.x] = got;
}

// The lane that `lane` reads, as the CUDA guide states it.
int shuffle_source(Shuffle kind, int lane, int argument, int width) {
  const int begin = lane / width * width;
  switch (kind) {
    case Shuffle::index:
      return begin + argument % width;
    case Shuffle::up:
      return lane - argument < begin ? lane : lane - argument;
    case Shuffle::down:
      return lane + argument >= begin + width ? lane : lane + argument;
    case Shuffle::exclusive_or:
      return (lane ^ argument) >= begin + width ? lane : lane ^ argument;
  }
  return -1;
}

template <class T>
void expect_shuffles(Shuffle kind, int argument, int width) {
  Buffer<T> out(2 * kLanes);
  launch(context(), shuffle_kernel<T>, {1, 2 * kLanes}, out.data(), kind, argument, width);
  const std::vector<T> got = out.host();
  for (int i = 0; i < 2 * kLanes; ++i) {
    const int source = i / kLanes * kLanes + shuffle_source(kind, i % kLanes, argument, width);
    ASSERT_EQ(got[static_cast<size_t>(i)], static_cast<T>(100 + source))
        << "kind " << static_cast<int>(kind) << " width " << width << " argument " << argument
        << " thread " << i;
  }
}

TEST(Warp, ShufflesReadTheLaneTheyName) {
  for (uint64_t seed : kSeeds) {
    const Schedule schedule(seed);
    for (Shuffle kind : {Shuffle::index, Shuffle::up, Shuffle::down, Shuffle::exclusive_or})
      for (int width : {4, 8, 16, 32})
        for (int argument : {0, 1, 2, 3, 7, 16, 31}) {
          expect_shuffles<float>(kind, argument, width);
          expect_shuffles<double>(kind, argument, width);
          expect_shuffles<unsigned>(kind, argument, width);
        }
  }
}

__global__ void half_warps(int* out) {
  const auto lane = static_cast<int>(threadIdx.x);
  const unsigned mask = lane < 16 ? 0x0000FFFFu : 0xFFFF0000u;
  int sum = lane;
  for (int rounds = lane < 16 ? 1 : 3; rounds > 0; --rounds)  // the halves do not run in step
    sum += __shfl_xor_sync(mask, sum, 1);
  out[lane] = sum;
}

TEST(Warp, PartsOfAWarpMeetOnTheirOwn) {
  for (uint64_t seed : kSeeds) {
    const Schedule schedule(seed);
    Buffer<int> out(kLanes);
    launch(context(), half_warps, {1, kLanes}, out.data());
    const std::vector<int> got = out.host();
    for (int lane = 0; lane < kLanes; ++lane) {
      int pair = lane + (lane ^ 1);
      if (lane >= 16) pair *= 4;
      EXPECT_EQ(got[static_cast<size_t>(lane)], pair);
    }
  }
}

struct Votes {
  unsigned ballot;
  int any, all, any_of_none, all_of_all;
};

__global__ void vote_kernel(Votes* out, unsigned pattern, unsigned mask) {
  const unsigned lane = threadIdx.x;
  if (!(mask >> lane & 1)) return;
  const int mine = static_cast<int>(pattern >> lane & 1) * 4;  // true is whatever is not 0
  out[lane] = {__ballot_sync(mask, mine), __any_sync(mask, mine), __all_sync(mask, mine),
               __any_sync(mask, 0), __all_sync(mask, 1)};
}

TEST(Warp, VotesCountTheLanesOfTheMask) {
  for (uint64_t seed : kSeeds)
    for (unsigned mask : {kAll, 0x00F0F00Fu, 0x80000000u})
      for (unsigned pattern : {0u, kAll, 0x12345678u, 0x00F0F00Fu, 1u}) {
        const Schedule schedule(seed);
        Buffer<Votes> out(kLanes);
        launch(context(), vote_kernel, {1, kLanes}, out.data(), pattern, mask);
        const std::vector<Votes> got = out.host();
        for (unsigned lane = 0; lane < kLanes; ++lane) {
          if (!(mask >> lane & 1)) continue;
          EXPECT_EQ(got[lane].ballot, pattern & mask);
          EXPECT_EQ(got[lane].any, (pattern & mask) != 0);
          EXPECT_EQ(got[lane].all, (pattern & mask) == mask);
          EXPECT_EQ(got[lane].any_of_none, 0);
          EXPECT_EQ(got[lane].all_of_all, 1);
        }
      }
}

struct Reduced {
  unsigned sum, least, greatest, all_bits, any_bit, odd_bits;
  int signed_sum, signed_least, signed_greatest;
};

__host__ __device__ unsigned reduced_value(unsigned lane) {
  return 0x9E3779B9u * (lane + 1);
}

__global__ void reduce_kernel(Reduced* out) {
  const unsigned x = reduced_value(threadIdx.x);
  const int s = static_cast<int>(x);
  out[threadIdx.x] = {
      __reduce_add_sync(kAll, x), __reduce_min_sync(kAll, x), __reduce_max_sync(kAll, x),
      __reduce_and_sync(kAll, x), __reduce_or_sync(kAll, x),  __reduce_xor_sync(kAll, x),
      __reduce_add_sync(kAll, s), __reduce_min_sync(kAll, s), __reduce_max_sync(kAll, s)};
}

TEST(Warp, ReductionsAreThoseOfTheHost) {
  Buffer<Reduced> out(kLanes);
  launch(context(), reduce_kernel, {1, kLanes}, out.data());
  Reduced r{0, kAll, 0, kAll, 0, 0, 0, INT32_MAX, INT32_MIN};
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const unsigned x = reduced_value(lane);
    const int s = static_cast<int>(x);
    r = {r.sum + x,
         std::min(r.least, x),
         std::max(r.greatest, x),
         r.all_bits & x,
         r.any_bit | x,
         r.odd_bits ^ x,
         static_cast<int>(r.sum + x),
         std::min(r.signed_least, s),
         std::max(r.signed_greatest, s)};
  }
  for (const Reduced& got : out.host()) EXPECT_EQ(std::memcmp(&got, &r, sizeof(r)), 0);
}

// Neighbours exchange through shared memory, in a warp and in a block.
__global__ void exchange_kernel(int* out, int rounds) {
  SharedMemory shared;
  int* cell = shared.array<int>(static_cast<int>(blockDim.x));
  const unsigned i = threadIdx.x, n = blockDim.x;
  int x = static_cast<int>(i);
  for (int round = 0; round < rounds; ++round) {
    cell[i] = x;
    __syncwarp();
    x = cell[i ^ 1] + 1;
    __syncwarp();
    cell[i] = x;
    __syncthreads();
    x = cell[(i + 33) % n] + 1;
    __syncthreads();
  }
  out[i] = x;
}

TEST(Block, BarriersOrderWhatThreadsExchange) {
  for (uint64_t seed : kSeeds)
    for (unsigned n : {32u, 64u, 512u, 1024u}) {
      const Schedule schedule(seed);
      constexpr int kRounds = 5;
      Buffer<int> out(n);
      const size_t bytes = SharedSize().array<int>(n).bytes();
      launch(context(), exchange_kernel, {1, n, bytes}, out.data(), kRounds);
      std::vector<int> x(n);
      for (unsigned i = 0; i < n; ++i) x[i] = static_cast<int>(i);
      for (int round = 0; round < kRounds; ++round) {
        std::vector<int> y(n);
        for (unsigned i = 0; i < n; ++i) y[i] = x[i ^ 1] + 1;
        for (unsigned i = 0; i < n; ++i) x[i] = y[(i + 33) % n] + 1;
      }
      EXPECT_EQ(out.host(), x) << n << " threads, seed " << seed;
    }
}

struct Counted {
  int count, any, all;
};

__global__ void count_kernel(Counted* out, unsigned limit) {
  const int mine = threadIdx.x < limit;
  out[threadIdx.x] = {__syncthreads_count(mine), __syncthreads_or(mine), __syncthreads_and(mine)};
}

TEST(Block, BarriersCountPredicates) {
  constexpr unsigned kThreads = 70;  // the last warp is not full
  for (uint64_t seed : kSeeds)
    for (unsigned limit : {0u, 1u, 33u, kThreads}) {
      const Schedule schedule(seed);
      Buffer<Counted> out(kThreads);
      launch(context(), count_kernel, {1, kThreads}, out.data(), limit);
      for (const Counted& got : out.host()) {
        EXPECT_EQ(got.count, static_cast<int>(limit));
        EXPECT_EQ(got.any, limit > 0);
        EXPECT_EQ(got.all, limit == kThreads);
      }
    }
}

struct Atomics {
  int sum = 0, greatest = -1000, least = 1000, difference = 0, taken = 0;
  unsigned any = 0, all = kAll, wrapped = 0, exchanged = 0;
  float real = 0;
  unsigned long long wide = 0;
};

__global__ void atomics_kernel(Atomics* a, unsigned* seen) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const auto u = static_cast<unsigned>(i);
  SharedMemory shared;
  int* sum = shared.array<int>(1);
  if (threadIdx.x == 0) *sum = 0;
  __syncthreads();
  atomicAdd(sum, i);
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(&a->sum, *sum);
  atomicMax(&a->greatest, i);
  atomicMin(&a->least, -i);
  atomicSub(&a->difference, i);
  atomicOr(&a->any, 1u << (u % 32));
  atomicAnd(&a->all, ~(1u << (u % 16)));
  atomicInc(&a->wrapped, 9);
  atomicAdd(&a->real, 0.5f);
  atomicAdd(&a->wide, 1ull << 33);
  atomicAdd(&seen[atomicExch(&a->exchanged, u + 1)], 1u);  // each value is taken over once
  for (int old = 0, now = a->taken; old != now || atomicCAS(&a->taken, old, old + 2) != old;)
    old = now, now = atomicAdd(&a->taken, 0);
}

TEST(Grid, AtomicsLoseNothing) {
  constexpr unsigned kThreads = 96, kBlocks = 7, kTotal = kThreads * kBlocks;
  for (uint64_t seed : kSeeds)
    for (int workers : {1, 3}) {
      const Schedule schedule(seed);
      Buffer<Atomics> a(std::vector<Atomics>(1));
      Buffer<unsigned> seen(std::vector<unsigned>(kTotal + 1, 0));
      launch(context(workers), atomics_kernel,
             {kBlocks, kThreads, SharedSize().array<int>(1).bytes()}, a.data(), seen.data());
      const Atomics got = a.host()[0];
      constexpr int kSum = kTotal * (kTotal - 1) / 2, kLast = kTotal - 1;
      EXPECT_EQ(got.sum, kSum);
      EXPECT_EQ(got.difference, -kSum);
      EXPECT_EQ(got.greatest, kLast);
      EXPECT_EQ(got.least, -kLast);
      EXPECT_EQ(got.any, kAll);
      EXPECT_EQ(got.all, 0xFFFF0000u);
      EXPECT_EQ(got.wrapped, kTotal % 10);
      EXPECT_EQ(got.real, 0.5f * static_cast<float>(kTotal));
      EXPECT_EQ(got.wide, static_cast<unsigned long long>(kTotal) << 33);
      std::vector<unsigned> once(kTotal + 1, 1);
      once[got.exchanged] = 0;
      EXPECT_EQ(seen.host(), once);
      EXPECT_EQ(got.taken, 2 * static_cast<int>(kTotal));
    }
}

}  // namespace
}  // namespace kla::simt::testing
