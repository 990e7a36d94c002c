// Versions of the driver and of NVIDIA's libraries, for `kla doctor`. NCCL is looked for where a
// run would load it from.
#include <cublasLt.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#if __has_include(<cudnn.h>)
#include <cudnn.h>
#endif

#include "kernels/cuda/runtime.h"

namespace kla::cuda {
namespace {

std::string major_minor(int version) {  // 13000 -> "13.0"
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string nccl_version() {
  void* library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (!library) return "NCCL: libnccl.so.2 not found (needed for several GPUs)";
  int version = 0;
  using GetVersion = int (*)(int*);
  const auto get = reinterpret_cast<GetVersion>(dlsym(library, "ncclGetVersion"));
  if (get) get(&version);
  dlclose(library);
  return "NCCL " + std::to_string(version / 10000) + "." + std::to_string(version % 10000 / 100) +
         "." + std::to_string(version % 100);
}

}  // namespace

std::vector<std::string> library_versions() {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  const auto cublas = static_cast<int>(cublasLtGetVersion());  // 130100: 13.1.0
  std::vector<std::string> versions{
      "driver for CUDA " + major_minor(driver), "CUDA runtime " + major_minor(runtime),
      "cuBLASLt " + std::to_string(cublas / 10000) + "." + std::to_string(cublas % 10000 / 100)};
#ifdef CUDNN_VERSION
  const size_t cudnn = cudnnGetVersion();  // 91400: 9.14.0
  versions.push_back("cuDNN " + std::to_string(cudnn / 10000) + "." +
                     std::to_string(cudnn % 10000 / 100) + "." + std::to_string(cudnn % 100));
#else
  versions.push_back("cuDNN: not part of this build");
#endif
  versions.push_back(nccl_version());
  return versions;
}

}  // namespace kla::cuda
