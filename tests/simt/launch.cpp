#include "kernels/cuda/launch.cuh"

#include <cstdlib>
#include <string>

#include "tests/simt/host_api.h"

namespace kla::simt {
namespace {

// What CUDA answers with cudaErrorInvalidConfiguration.
void check_shape(const Shape& shape) {
  constexpr unsigned kMaxThreads = 1024, kMaxBlocks = 65535;
  if (shape.threads == 0 || shape.threads > kMaxThreads || shape.grid.y > kMaxBlocks ||
      shape.grid.z > kMaxBlocks)
    throw Error(Exit::internal,
                "simt: a launch of " + std::to_string(shape.grid.x) + "x" +
                    std::to_string(shape.grid.y) + "x" + std::to_string(shape.grid.z) +
                    " blocks of " + std::to_string(shape.threads) + " threads",
                "at most 1024 threads, and 65535 blocks in y and z");
}

uint64_t schedule_seed() {
  const char* value = std::getenv("KLA_SIMT_SEED");
  return value ? std::strtoull(value, nullptr, 10) : 0;
}

}  // namespace

void launch_threads(const Context& context, const Shape& shape, std::function<void()> thread) {
  if (context.dry_run || shape.grid.x == 0 || shape.grid.y == 0 || shape.grid.z == 0) return;
  KLA_CHECK(!fibers::current, "a kernel launches a kernel");
  check_shape(shape);
  const fibers::Grid grid{shape.grid, shape.threads, shape.shared_bytes, schedule_seed()};
  submit([pool = context.pool, grid, thread = std::move(thread)] {
    pool->run(grid.size(), [&](int64_t block, int) { fibers::run_block(thread, grid, block); });
  });
}

}  // namespace kla::simt
