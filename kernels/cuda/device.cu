// The services of a GPU (core/device.h): set-up, memory, copies, and the one stream on which every
// copy and every kernel of the process is ordered. All calls of the CUDA runtime stand here but the
// launch itself (launch.cuh).
#include <algorithm>
#include <cstring>

#ifndef KLA_SIMT
#include <nvtx3/nvToolsExt.h>
#endif

#include "core/device.h"
#include "core/memory.h"
#include "kernels/cuda/launch.cuh"

namespace kla::KLA_BACKEND {
namespace {

constexpr int kOldestMajor = 8;  // the first with bf16 tensor cores

#ifndef KLA_SIMT
__global__ void any_kernel() {}  // asked whether the program has code for the device
#endif

// Two page-locked buffers: the host fills one while the device copies out of the other. A batch of
// tokens fits one, weights go through in pieces.
class UploadRing {
 public:
  UploadRing() {
    for (Slot& slot : slots_) {
      KLA_CUDA_CHECK(cudaMallocHost(&slot.memory, kBytes));
      KLA_CUDA_CHECK(cudaEventCreateWithFlags(&slot.copied, cudaEventDisableTiming));
    }
  }

  void upload(void* device, const void* host, int64_t bytes) {
    for (int64_t done = 0; done < bytes; done += kBytes) {
      Slot& slot = slots_[next_];
      next_ = 1 - next_;
      KLA_CUDA_CHECK(cudaEventSynchronize(slot.copied));  // returns at once if never recorded
      const auto piece = static_cast<size_t>(std::min(kBytes, bytes - done));
      std::memcpy(slot.memory, static_cast<const char*>(host) + done, piece);
      KLA_CUDA_CHECK(cudaMemcpyAsync(static_cast<char*>(device) + done, slot.memory, piece,
                                     cudaMemcpyHostToDevice, stream()));
      KLA_CUDA_CHECK(cudaEventRecord(slot.copied, stream()));
    }
  }

 private:
  static constexpr int64_t kBytes = 8 << 20;
  struct Slot {
    void* memory = nullptr;
    cudaEvent_t copied = nullptr;
  };
  Slot slots_[2];
  int next_ = 0;
};

#ifndef KLA_SIMT
// A range per op in the timeline of Nsight Systems; some ten nanoseconds when nobody listens.
class Tracer final : public OpObserver {
 public:
  void begin(const OpBase& op, const void*) override { nvtxRangePushA(op.name()); }
  void end() override { nvtxRangePop(); }
};
#endif

class Graph final : public Recording {
 public:
  explicit Graph(const std::function<void()>& work) {
    cudaGraph_t graph = nullptr;
    KLA_CUDA_CHECK(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal));
    try {
      work();
    } catch (...) {
      if (cudaStreamEndCapture(stream(), &graph) == cudaSuccess) cudaGraphDestroy(graph);
      throw;
    }
    KLA_CUDA_CHECK(cudaStreamEndCapture(stream(), &graph));
    KLA_CUDA_CHECK(cudaGraphInstantiate(&executable_, graph, 0));
    cudaGraphDestroy(graph);
  }
  ~Graph() override { cudaGraphExecDestroy(executable_); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void replay() override { KLA_CUDA_CHECK(cudaGraphLaunch(executable_, stream())); }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

class GpuServices final : public DeviceServices {
 public:
  GpuServices() {
    choose();
    KLA_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }

  bool host_memory() const override { return false; }
  std::string describe() const override {
    return std::string(properties_.name) + ", " +
           format_bytes(static_cast<int64_t>(properties_.totalGlobalMem)) +
           ", compute capability " + std::to_string(properties_.major) + "." +
           std::to_string(properties_.minor);
  }
#ifndef KLA_SIMT
  std::vector<std::string> libraries() const override {
    return library_versions();
  }
#endif
  int64_t free_bytes() const override {
    size_t free = 0, total = 0;
    KLA_CUDA_CHECK(cudaMemGetInfo(&free, &total));
    return static_cast<int64_t>(free);
  }

  void* allocate(int64_t bytes) override {
    void* memory = nullptr;
    const cudaError_t error = cudaMalloc(&memory, static_cast<size_t>(bytes));
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // forget it: the caller says what to do about it
      return nullptr;
    }
    check_cuda(error, "cudaMalloc", __FILE__, __LINE__);
    return memory;
  }
  void release(void* memory) noexcept override {
    cudaFree(memory);
  }

  void upload(void* device, const void* host, int64_t bytes) override {
    if (!ring_) ring_ = std::make_unique<UploadRing>();
    ring_->upload(device, host, bytes);
  }
  void download(void* host, const void* device, int64_t bytes) override {
    KLA_CUDA_CHECK(
        cudaMemcpyAsync(host, device, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_));
    synchronize();
  }
  void copy(void* to, const void* from, int64_t bytes) override {
    KLA_CUDA_CHECK(
        cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream_));
  }
  void fill(void* device, uint8_t byte, int64_t bytes) override {
    KLA_CUDA_CHECK(cudaMemsetAsync(device, byte, static_cast<size_t>(bytes), stream_));
  }
  void synchronize() override {
    KLA_CUDA_CHECK(cudaStreamSynchronize(stream_));
  }
  void* stream() override {
    return stream_;
  }

#ifndef KLA_SIMT
  bool idle() override {
    const cudaError_t state = cudaStreamQuery(stream_);
    if (state == cudaErrorNotReady) return false;
    check_cuda(state, "cudaStreamQuery", __FILE__, __LINE__);
    return true;
  }
#endif

  // The first call is for what ops set up once (library handles, kernels loaded on demand), which a
  // capture forbids.
  std::unique_ptr<Recording> record(std::function<void()> work) override {
    work();
    return std::make_unique<Graph>(work);
  }
#ifndef KLA_SIMT
  OpObserver* tracer() override {
    return &tracer_;
  }
#endif

 private:
  void choose() {
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess || devices == 0)
      throw Error(Exit::usage,
                  std::string("device.backend: no NVIDIA GPU can be used here: ") +
                      (error != cudaSuccess ? cudaGetErrorString(error) : "none is visible"),
                  "check `nvidia-smi` and CUDA_VISIBLE_DEVICES, or choose device.backend: cpu");
    const int index = device_in_use();
    if (index >= devices)
      throw Error(Exit::usage,
                  "device.backend: rank " + std::to_string(index) +
                      " of this node has no GPU: " + std::to_string(devices) + " are visible",
                  "start one process per GPU, or check CUDA_VISIBLE_DEVICES");
    KLA_CUDA_CHECK(cudaSetDevice(index));
    KLA_CUDA_CHECK(cudaGetDeviceProperties(&properties_, index));
    if (properties_.major < kOldestMajor || properties_.sharedMemPerBlockOptin < kSharedMemory)
      throw Error(Exit::usage,
                  "device.backend: " + describe() + " gives a block " +
                      std::to_string(properties_.sharedMemPerBlockOptin / 1024) +
                      " KiB of shared memory; the kernels need compute capability 8.0 and 163 KiB",
                  "use an A100, H100, H200 or newer, or choose device.backend: cpu");
#ifndef KLA_SIMT
    cudaFuncAttributes attributes;
    const cudaError_t code = cudaFuncGetAttributes(&attributes, any_kernel);
    if (code == cudaErrorNoKernelImageForDevice || code == cudaErrorInvalidDeviceFunction) {
      const int capability = 10 * properties_.major + properties_.minor;
      throw Error(Exit::usage,
                  "device.backend: this program's kernels are compiled for sm_" KLA_CUDA_ARCH
                  ", not for " +
                      describe(),
                  "build with make cuda CUDA_ARCH=" + std::to_string(capability) +
                      (capability == 90 ? "a" : "") + ", or choose device.backend: cpu");
    }
    KLA_CUDA_CHECK(code);
#endif
  }

  cudaDeviceProp properties_{};
  cudaStream_t stream_ = nullptr;
  std::unique_ptr<UploadRing> ring_;
#ifndef KLA_SIMT
  Tracer tracer_;
#endif
};

// Never destroyed: memory is released after main() as well, and the driver cleans up behind us.
GpuServices& gpu() {
  static GpuServices& services = *new GpuServices;
  return services;
}

DeviceServices& make_services() {
  return gpu();
}

[[maybe_unused]] const bool registered = register_services(Device::KLA_BACKEND, make_services);

}  // namespace

cudaStream_t stream() {
  return static_cast<cudaStream_t>(gpu().stream());
}

void check_cuda(cudaError_t error, const char* call, const char* file, int line) {
  if (error == cudaSuccess) return;
  throw Error(
      Exit::internal,
      std::string(call) + " failed (" + file + ":" + std::to_string(line) +
          "): " + cudaGetErrorString(error),
      "set CUDA_LAUNCH_BLOCKING=1 to see which kernel it was; compute-sanitizer shows where");
}

}  // namespace kla::KLA_BACKEND
