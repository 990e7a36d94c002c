// kla doctor: what this machine and this build can do: devices, libraries and the instructions they
// chose, measured peak rates, and what is missing with the way to get it.
#include <sys/sysinfo.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "commands/arguments.h"
#include "commands/commands.h"
#include "commands/yardstick.h"
#include "core/device.h"
#include "core/memory.h"
#include "kernels/cpu/yardstick.h"
#include "model/runtime.h"
#include "version.h"

namespace kla {
namespace {

std::string processor_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown processor";
}

int64_t memory_bytes() {
  struct sysinfo info {};
  sysinfo(&info);
  return static_cast<int64_t>(info.totalram) * info.mem_unit;
}

// One square product and one copy, the best of three turns.
void print_peaks(Device device, DType type, int64_t size) {
  Runtime runtime(device, 0, type);
  Arena scratch("scratch", int64_t{128} << 20, &services_of(device));
  runtime.context.scratch = &scratch;
  ProductTiming product{
      .product = {.form = Product::Form::forward, .m = size, .n = size, .k = size}};
  const auto yardstick = make_yardstick(runtime.context, {product.product});
  double copy = 0;
  for (int turn = 0; turn < 3; ++turn) {
    yardstick->time(product);
    copy = std::max(copy, yardstick->copy_rate());
  }
  std::printf("    matmul %s, %lld cubed: %.0f GFLOP/s    copy: %.1f GB/s\n", name_of(type),
              static_cast<long long>(size), 1e-9 * product.best(), 1e-9 * copy);
}

void print_libraries(const std::vector<std::string>& libraries) {
  for (const std::string& library : libraries) std::printf("    %s\n", library.c_str());
}

}  // namespace

int doctor_command(const CommandLine& command_line) {
  bool quick = false;
  Arguments arguments("doctor", "Devices, libraries, measured peak rates, and what is missing.",
                      "kla doctor");
  arguments.flag("--quick", quick, "measure nothing");
  if (!arguments.parse(command_line)) return 0;

  std::printf("kla %s (%s), %s, %s\n", KLA_VERSION, KLA_GIT, KLA_COMPILER, KLA_BUILD_TYPE);
  std::printf("[x] cpu: %s, %d cores usable, %s of memory\n", processor_name().c_str(),
              available_cores(), format_bytes(memory_bytes()).c_str());
  print_libraries(cpu::library_versions());
  if (!quick) print_peaks(Device::cpu, DType::f32, 1536);

  std::string missing;
  if (available(Device::cuda, &missing)) {
    DeviceServices& gpu = services_of(Device::cuda);
    std::printf("[x] cuda: %s, %s free\n", gpu.describe().c_str(),
                format_bytes(gpu.free_bytes()).c_str());
    print_libraries(gpu.libraries());
    if (!quick) {
      print_peaks(Device::cuda, DType::bf16, 8192);
      print_peaks(Device::cuda, DType::f32, 4096);
    }
  } else {
    std::printf("[ ] cuda: %s\n    -> %s\n", missing.c_str(),
                "a CUDA build comes from 'make cuda' where a CUDA 13 toolkit is installed; "
                "'nvidia-smi' shows whether the driver sees a GPU");
  }
  if (available(Device::simt)) std::printf("[x] simt: CUDA kernels on this processor (tests)\n");
  return 0;
}

}  // namespace kla
