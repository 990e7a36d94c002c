// Every warp operation, barrier and atomic of the simt device against plain host code.
#include "tests/simt/harness.h"

namespace kla::simt::testing {
namespace {

constexpr int kLanes = 32;
constexpr unsigned kAll = 0xFFFFFFFF;

enum class Shuffle { index, up, down, exclusive_or };

__global__ void shuffle_kernel(float* out, Shuffle kind, int argument, int width) {
  const float mine = 100.0f + static_cast<float>(threadIdx.x);
  const auto distance = static_cast<unsigned>(argument);
  float got = 0;
  if (kind == Shuffle::index) got = __shfl_sync(kAll, mine, argument, width);
  if (kind == Shuffle::up) got = __shfl_up_sync(kAll, mine, distance, width);
  if (kind == Shuffle::down) got = __shfl_down_sync(kAll, mine, distance, width);
  if (kind == Shuffle::exclusive_or) got = __shfl_xor_sync(kAll, mine, argument, width);
  out[threadIdx.x] = got;
}

// Lane that `lane` reads, as the CUDA guide states it.
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

TEST(Warp, ShufflesReadTheLaneTheyName) {
  for (uint64_t seed : {0, 1, 2})
    for (Shuffle kind : {Shuffle::index, Shuffle::up, Shuffle::down, Shuffle::exclusive_or})
      for (int width : {4, 8, 16, 32})
        for (int argument : {0, 1, 2, 3, 7, 16, 31}) {
          const Schedule schedule(seed);
          Buffer<float> out(2 * kLanes);
          launch(context(), shuffle_kernel, {1, 2 * kLanes}, out.data(), kind, argument, width);
          const std::vector<float> got = out.host();
          for (int i = 0; i < 2 * kLanes; ++i) {
            const int source =
                i / kLanes * kLanes + shuffle_source(kind, i % kLanes, argument, width);
            ASSERT_EQ(got[static_cast<size_t>(i)], 100.0f + static_cast<float>(source))
                << "kind " << static_cast<int>(kind) << " width " << width << " argument "
                << argument << " thread " << i;
          }
        }
}

}  // namespace
}  // namespace kla::simt::testing
