// What kernel files and host code of the CUDA backend share: the runtime's types, the device's
// stream, and errors. launch.cuh adds what kernels need.
#pragma once

#ifdef KLA_SIMT
#include "tests/simt/cuda_runtime.h"
#define KLA_BACKEND simt
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#define KLA_BACKEND cuda
#endif

#include <string>
#include <vector>

#define KLA_CUDA_CHECK(call) ::kla::KLA_BACKEND::check_cuda((call), #call, __FILE__, __LINE__)

namespace kla::KLA_BACKEND {

// The stream of this process's device: everything is ordered on it (device.cu).
cudaStream_t stream();

// Error{internal} with the call, its place and CUDA's text.
void check_cuda(cudaError_t, const char* call, const char* file, int line);

// "cuBLASLt 13.1", ... of the driver and NVIDIA's libraries (versions.cpp).
std::vector<std::string> library_versions();

}  // namespace kla::KLA_BACKEND
