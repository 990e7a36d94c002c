#include "core/device.h"

#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>

#include "core/bf16.h"
#include "core/error.h"

namespace kla {
namespace {

class HostServices final : public DeviceServices {
 public:
  bool host_memory() const override { return true; }
  std::string describe() const override { return "this machine's processor"; }
  int64_t free_bytes() const override {
    return int64_t{sysconf(_SC_AVPHYS_PAGES)} * int64_t{sysconf(_SC_PAGESIZE)};
  }
  void* allocate(int64_t bytes) override {
    constexpr int64_t kAlignment = 256;
    return std::aligned_alloc(
        kAlignment, static_cast<size_t>((bytes + kAlignment - 1) / kAlignment * kAlignment));
  }
  void release(void* memory) noexcept override { std::free(memory); }
  void upload(void* device, const void* host, int64_t bytes) override { copy(device, host, bytes); }
  void download(void* host, const void* device, int64_t bytes) override {
    copy(host, device, bytes);
  }
  void copy(void* to, const void* from, int64_t bytes) override {
    if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));  // null where empty
  }
  void fill(void* device, uint8_t byte, int64_t bytes) override {
    if (bytes > 0) std::memset(device, byte, static_cast<size_t>(bytes));
  }
  void synchronize() override {}
};

DeviceServices& host_services() {
  static HostServices services;
  return services;
}

class Repetition final : public Recording {
 public:
  explicit Repetition(std::function<void()> work) : work_(std::move(work)) {}
  void replay() override { work_(); }

 private:
  std::function<void()> work_;
};

int device_index = 0;

std::array<MakeServices, kDevices>& registry() {
  static std::array<MakeServices, kDevices> makers{host_services, host_services, nullptr, nullptr};
  return makers;
}

}  // namespace

std::unique_ptr<Recording> DeviceServices::record(std::function<void()> work) {
  work();
  return std::make_unique<Repetition>(std::move(work));
}

void use_device(int index) {
  device_index = index;
}

int device_in_use() {
  return device_index;
}

DeviceServices& services_of(Device device) {
  const MakeServices make = registry()[static_cast<size_t>(device)];
  if (!make)
    throw Error(Exit::usage,
                std::string("device.backend: this build has no '") + name_of(device) + "' device",
                "choose auto or cpu, or build with KLA_CUDA=ON (KLA_SIMT=ON for simt)");
  return make();
}

bool available(Device device, std::string* why_not) {
  try {
    services_of(device);
    return true;
  } catch (const Error& error) {
    if (why_not) *why_not = error.what();
    return false;
  }
}

bool register_services(Device device, MakeServices make) {
  registry()[static_cast<size_t>(device)] = make;
  return true;
}

void upload(const Context& context, View to, const void* host) {
  KLA_CHECK(to.dense(), to.describe());
  if (!context.dry_run) services_of(context.device).upload(to.data, host, to.bytes());
}

void download(const Context& context, const View& from, void* host) {
  KLA_CHECK(from.dense(), from.describe());
  if (!context.dry_run) services_of(context.device).download(host, from.data, from.bytes());
}

std::vector<double> downloaded_as_double(const Context& context, const View& from) {
  if (from.dtype == DType::f64) return downloaded<double>(context, from);
  if (from.dtype == DType::f32) {
    const std::vector<float> values = downloaded<float>(context, from);
    return {values.begin(), values.end()};
  }
  std::vector<double> values;
  for (bf16 x : downloaded<bf16>(context, from)) values.push_back(static_cast<float>(x));
  return values;
}

HostMirror::HostMirror(const Context& context, View device)
    : context_(&context), device_(device), host_(device) {
  if (context.dry_run || services_of(context.device).host_memory()) return;
  copy_.resize(static_cast<size_t>(device.bytes()));
  host_.data = copy_.data();
}

void HostMirror::pull() {
  if (!copy_.empty()) download(*context_, device_, copy_.data());
}

void HostMirror::push() {
  if (!copy_.empty()) upload(*context_, device_, copy_.data());
}

}  // namespace kla
