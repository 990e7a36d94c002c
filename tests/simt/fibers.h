// The machine of the simt device: every CUDA thread of a block is a fiber, and threads change only
// where one has to wait for others: at barriers of the block and where lanes of a warp meet.
//
//   round robin (default)   warp after warp, lane after lane, each as far as it gets
//   shuffled (a seed)       after every such point any thread that can run is drawn next, so that
//                           code which relies on an order it never asked for computes wrong numbers
//
// A thread that waits for one that never comes is an Error that says who waits where, never a hang.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>
#include <vector>

#include "tests/simt/types.h"

extern constinit thread_local uint3 threadIdx, blockIdx;
extern constinit thread_local dim3 blockDim, gridDim;

namespace kla::fibers {

// Where in a kernel something happens, and what: "__syncthreads", file and line.
struct Site {
  const char* what = "";
  std::source_location place;
};
std::string describe(const Site&);

// Lanes of one warp that wait for each other.
struct Meeting {
  uint32_t mask = 0, arrived = 0;
  Site site;
};

struct Warp {
  static constexpr int kLanes = 32;
  static constexpr uint32_t kAll = 0xFFFFFFFF;
  uint32_t exists = 0, ready = 0, returned = 0;  // lanes
  Meeting meetings[kLanes];                      // by the lowest lane of their mask
  // What the lanes bring to a meeting and take from it.
  alignas(16) std::byte in[kLanes][48];
  alignas(16) std::byte out[kLanes][128];

  template <class T>
  T& brought(int lane) {
    static_assert(sizeof(T) <= sizeof(in[0]) && alignof(T) <= 16);
    return *reinterpret_cast<T*>(in[lane]);
  }
  template <class T>
  T& taken(int lane) {
    static_assert(sizeof(T) <= sizeof(out[0]) && alignof(T) <= 16);
    return *reinterpret_cast<T*>(out[lane]);
  }
};

// A cp.async under way.
struct AsyncCopy {
  void* shared;
  const void* global;  // null: zeros
  int group;           // of this thread, counted by commits
};

// Cores of 8x8 16-bit elements in shared memory (kernels/cuda/wgmma.cuh).
struct SharedOperand {
  const unsigned char* first = nullptr;
  int k_bytes = 0, n_bytes = 0;
};
struct CoreMatrix : SharedOperand {
  bool transposed = false;
};

// A product of a warpgroup under way, as one thread sees it: blocks of 8 accumulators each, rows g
// and g + 8 of its warp's left operand unless that is in shared memory, the right operand.
struct WarpgroupProduct {
  float* c;
  int blocks;
  bool add;
  float a[2][16];
  CoreMatrix shared_a, b;
  int group;  // of this thread, counted by commits
};
// Accumulators that such products have, and how many of them.
struct WarpgroupBlock {
  float* c;
  int products;
  float value[8];
};

struct Thread {
  void* context = nullptr;     // of Boost.Context: where it goes on
  void* fake_stack = nullptr;  // AddressSanitizer's
  Warp* warp = nullptr;
  int lane = 0;
  bool returned = false;
  uint3 index{};
  Site waits_at;
  std::vector<AsyncCopy> copies;
  int open_group = 0;
  std::vector<WarpgroupProduct> products;
  std::vector<WarpgroupBlock> blocks;
  int open_products = 0;
};

extern constinit thread_local Thread* current;  // null outside of kernels

// The running thread; Error naming `site` outside of a kernel.
Thread& running(const Site& site);
// Error with block, thread and site in front.
[[noreturn]] void fail(const Site&, const std::string& message, const std::string& remedy = "");

// The calling lane comes to its meeting: true for the last lane of the mask, which does what there
// is to do for all of them and calls release(); the others call wait().
bool arrive(uint32_t mask, const Site&);
void release(uint32_t mask, const Site&);
void wait(const Site&);
// A point where another thread may come first: with a shuffled schedule.
void preempt(const Site&);

// Lanes of `mask` meet; complete(warp) runs once, when all are there.
template <class Complete>
void meet(uint32_t mask, const Site& site, Complete&& complete) {
  if (!arrive(mask, site)) return wait(site);
  complete(*current->warp);
  release(mask, site);
}

// The whole block meets: the number of threads whose predicate is true.
int barrier(bool predicate, const Site&);

// Array number `index` of the running block's shared memory: the same for all threads.
void* shared_array(size_t index, size_t bytes, const Site&);
// Error unless `pointer` is 16-byte aligned and begins 16 bytes of one of the block's arrays.
void check_shared_row(const void* pointer, const Site&);

// A kernel with its arguments; called once by each thread.
using Kernel = std::function<void()>;

struct Grid {
  dim3 blocks;
  unsigned threads;     // of a block
  size_t shared_bytes;  // as declared by the launch
  uint64_t seed;        // of the schedule; 0: round robin
  int64_t size() const { return int64_t{blocks.x} * blocks.y * blocks.z; }
};

// Runs one block on the calling OS thread, which keeps the stacks for the next.
void run_block(const Kernel&, const Grid&, int64_t block);

}  // namespace kla::fibers
