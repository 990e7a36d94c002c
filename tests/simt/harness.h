// For the tests of the simt device: launches on a context of its own, and buffers as the device
// hands them out.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace kla::simt::testing {

inline Context& context(int threads = 1) {
  static std::map<int, ThreadPool> pools;
  static Context context;
  context.device = Device::simt;
  context.pool = &pools.try_emplace(threads, threads).first->second;
  return context;
}

template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count) : count_(count) { cudaMalloc(&data_, count * sizeof(T)); }
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice);
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() { return data_; }
  std::vector<T> host() const { return {data_, data_ + count_}; }

 private:
  T* data_ = nullptr;
  size_t count_;
};

// A schedule seed for the time of a scope.
class Schedule {
 public:
  explicit Schedule(uint64_t seed) { setenv("KLA_SIMT_SEED", std::to_string(seed).c_str(), 1); }
  ~Schedule() { unsetenv("KLA_SIMT_SEED"); }
  Schedule(const Schedule&) = delete;
  Schedule& operator=(const Schedule&) = delete;
};

// The message of the Error that a launch ends with; empty if there is none.
template <class Launch>
std::string error_of(Launch&& launch) {
  try {
    launch();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace kla::simt::testing
