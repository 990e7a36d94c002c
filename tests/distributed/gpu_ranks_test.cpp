// Two GPUs of this machine, a process each, over NCCL. Skipped where they are not there.
#include <signal.h>

#include <nlohmann/json.hpp>

#include "core/device.h"
#include "tests/distributed/rank_run.h"

namespace kla::testing {
namespace {

class GpuRanks : public MicroRun {
 protected:
  void SetUp() override {
    std::string why;
    if (!file_exists("/dev/nvidia1")) GTEST_SKIP() << "fewer than two GPUs";
    if (!available(Device::cuda, &why)) GTEST_SKIP() << why;
  }

  // The kernels want head widths that are multiples of 16.
  static std::vector<std::string> on_gpu(const std::string& name,
                                         std::vector<std::string> more = {}) {
    more.insert(more.end(), {"device.backend=cuda", "device.dtype=f32", "model.key_head_dim=16",
                             "model.value_head_dim=32", "train.micro_batch_size=1", "optim.lr=1e-3",
                             "schedule.warmup_tokens=5120"});
    return train(name, more);
  }

  static std::vector<double> losses_of(const std::string& run) {
    std::vector<double> losses;
    for (const std::string& row : metrics_rows(at(run), "train.jsonl"))
      losses.push_back(nlohmann::json::parse(row).at("loss"));
    return losses;
  }
};

TEST_F(GpuRanks, GiveTheLossesOfOneAndRepeatTheirBits) {
  const std::vector<std::string> twenty = {"train.max_tokens=5120", "log.interval_steps=1"};
  const ProgramEnd one = kla(on_gpu("gpu_1", twenty));
  ASSERT_EQ(one.exit_code, 0) << one.errors;
  for (const char* name : {"gpu_2", "gpu_2_again"}) {
    TorchrunStyle ranks(folder(), 2, on_gpu(name, twenty));
    for (int rank : {0, 1}) {
      const ProgramEnd end = ranks.wait(rank);
      ASSERT_EQ(end.exit_code, 0) << end.errors;
    }
  }
  const std::vector<double> expected = losses_of("gpu_1"), losses = losses_of("gpu_2");
  ASSERT_EQ(expected.size(), 20u);
  ASSERT_EQ(losses.size(), 20u);
  for (size_t i = 0; i < 20; ++i) EXPECT_NEAR(losses[i], expected[i], 1e-5) << i;
  EXPECT_EQ(losses_of("gpu_2_again"), losses);
  EXPECT_TRUE(result_of(at("gpu_2_again")).weights == result_of(at("gpu_2")).weights);
}

TEST_F(GpuRanks, AFrozenOrDeadRankIsNamed) {
  for (const int signal : {SIGSTOP, SIGKILL}) {
    const std::string name = "gpu_signal_" + std::to_string(signal);
    TorchrunStyle ranks(folder(), 2,
                        on_gpu(name, {"dist.step_timeout_s=5", "train.max_tokens=20000000"}));
    wait_for_first_row(at(name));
    ranks[1].send(signal);
    const ProgramEnd end = ranks.wait(0);
    EXPECT_EQ(end.exit_code, 6) << end.errors;
    EXPECT_NE(end.errors.find("error: rank 1 on "), std::string::npos) << end.errors;
  }
}

}  // namespace
}  // namespace kla::testing
