// A tiny model trained end to end on the accelerators: its losses follow the cpu's, the same run
// twice has the same bits, and a resumed one goes on as if it had never stopped.
#include <gtest/gtest.h>

#include "core/device.h"
#include "tests/train/tiny_run.h"

namespace kla::testing {
namespace {

constexpr int64_t kSteps = 20, kHalf = 10;

std::vector<Device> accelerators() {
  std::vector<Device> devices;
  for (Device device : {Device::simt, Device::cuda})
    if (available(device)) devices.push_back(device);
  return devices;
}

class DeviceTraining : public ::testing::Test {
 protected:
  ScratchDirectory scratch;
  TokenDataset train = make_tokens(scratch / "train", 2 * kTinyStep * kSteps / 3, 1);

  // Head widths the CUDA kernels take, one sequence of two chunks a micro-batch.
  static Config config(Device device, DType compute) {
    Config c = tiny_config(kSteps);
    c.model.num_hidden_layers = 1;
    c.model.key_head_dim = 16;
    c.model.value_head_dim = 32;
    c.data.seq_len = 2 * kTinyLength;
    c.train.micro_batch_size = 1;
    c.train.global_batch_tokens = kTinyStep / 2;
    c.train.max_tokens = kSteps * kTinyStep / 2;
    c.device.backend = name_of(device);
    c.device.dtype = name_of(compute);
    return c;
  }

  void expect_losses_like_the_cpu(DType compute, double bound) {
    TinyRun cpu(config(Device::cpu, DType::f32), train);
    cpu.run();
    for (Device device : accelerators()) {
      TinyRun run(config(device, compute), train);
      run.run();
      ASSERT_EQ(run.losses().size(), cpu.losses().size());
      for (size_t step = 0; step < cpu.losses().size(); ++step)
        EXPECT_NEAR(run.losses()[step] / cpu.losses()[step], 1, bound)
            << name_of(device) << " in " << name_of(compute) << ", step " << step + 1;
      EXPECT_LT(run.losses().back(), 0.95 * run.losses().front()) << "nothing was learnt";
    }
  }
};

TEST_F(DeviceTraining, FollowsTheCpuInF32) {
  expect_losses_like_the_cpu(DType::f32, 1e-5);
}

TEST_F(DeviceTraining, FollowsTheCpuInBf16) {
  expect_losses_like_the_cpu(DType::bf16, 2e-2);
}

TEST_F(DeviceTraining, RepeatsAndResumesBitForBit) {
  for (Device device : accelerators()) {
    const Config c = config(device, DType::bf16);
    TinyRun whole(c, train);
    whole.run();
    TinyRun again(c, train);
    again.run();
    EXPECT_TRUE(again.last() == whole.last()) << name_of(device) << ": another run, other bits";
    TinyRun rest(c, train);
    rest.restore(whole.snapshots.at(kHalf));
    rest.run();
    EXPECT_TRUE(rest.last() == whole.last()) << name_of(device) << ": resumed, other bits";
  }
}

}  // namespace
}  // namespace kla::testing
