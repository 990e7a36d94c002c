// What devices offer beside their ops (core/device.h): copies of any size, memory or none,
// recordings.
#include <gtest/gtest.h>

#include "kernels/ops.h"
#include "tests/support/compare.h"

namespace kla::testing {
namespace {

// A buffer in a device's memory for the time of a test.
class Block {
 public:
  Block(DeviceServices& services, int64_t bytes)
      : services_(services), data_(services.allocate(bytes)), bytes_(bytes) {}
  ~Block() { services_.release(data_); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void* data() { return data_; }
  std::vector<uint8_t> host() {
    std::vector<uint8_t> bytes(static_cast<size_t>(bytes_));
    services_.download(bytes.data(), data_, bytes_);
    return bytes;
  }

 private:
  DeviceServices& services_;
  void* data_;
  int64_t bytes_;
};

// Larger than the pieces an upload may be cut into, and no multiple of them.
TEST(Services, CopiesOfAnySize) {
  constexpr int64_t kBytes = (20 << 20) + 13;
  std::vector<uint8_t> bytes(kBytes);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
  for (Device device : all_devices()) {
    DeviceServices& services = services_of(device);
    EXPECT_FALSE(services.describe().empty());
    EXPECT_GT(services.free_bytes(), kBytes);
    Block a(services, kBytes), b(services, kBytes);
    std::vector<uint8_t> source = bytes;
    services.upload(a.data(), source.data(), kBytes);
    std::fill(source.begin(), source.end(), uint8_t{0});  // the host may reuse it at once
    services.copy(b.data(), a.data(), kBytes);
    services.fill(a.data(), 7, 100);
    EXPECT_EQ(b.host(), bytes) << name_of(device);
    std::fill_n(bytes.begin(), 100, uint8_t{7});
    EXPECT_EQ(a.host(), bytes) << name_of(device);
    std::copy_n(b.host().begin(), 100, bytes.begin());
  }
}

TEST(Services, MemoryThatIsNotThereIsRefused) {
  for (Device device : all_devices()) {
    if (!is_gpu(device)) continue;
    DeviceServices& services = services_of(device);
    EXPECT_EQ(services.allocate(int64_t{1} << 50), nullptr) << name_of(device);
    services.synchronize();  // and it is no error of later calls
  }
}

// A sum shows how often it was really done.
TEST(Services, ARecordingRunsOnceAndThenWheneverReplayed) {
  for (Device device : all_devices()) {
    DeviceServices& services = services_of(device);
    const Results r = execute(device, [&](Lab& lab) {
      const View dw = lab.accumulator({3, 2});
      const View dy = lab.compute({1, 1, 1}, {1, 3}), x = lab.compute({1, 2}, {1, 2});
      const auto add = [&] { lab(ops::matmul_backward_weight, {dw, dy, x}); };
      if (lab.planning()) return add();
      const std::unique_ptr<Recording> recording = services.record(add);
      lab.keep("recorded", dw);
      recording->replay();
      recording->replay();
      lab.keep("replayed twice", dw);
    });
    EXPECT_EQ(r.at("recorded"), (Values{1.5, 2.5, 1.5, 2.5, 1.5, 2.5})) << name_of(device);
    EXPECT_EQ(r.at("replayed twice"), (Values{3.5, 6.5, 3.5, 6.5, 3.5, 6.5})) << name_of(device);
  }
}

}  // namespace
}  // namespace kla::testing
