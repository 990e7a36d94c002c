// Gradient norm and AdamW over flat buffers; both read and write every value once. The norm stays
// on the device: clipping needs no answer from the host. The table of segments travels in the
// kernel's arguments.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/reduce.cuh"
#include "kernels/ops.h"

namespace kla::KLA_BACKEND {
namespace {

constexpr unsigned kThreads = 256;
constexpr int64_t kNormBlocks = 1024;

// partial[block] = the sum over every gridDim.x-th stretch of kThreads values, in double.
__global__ void sum_of_squares_kernel(double* partial, const float* g, int64_t count) {
  SharedMemory shared;
  double* slots = shared.array<double>(kWarp);
  double sum = 0;
  const int64_t step = int64_t{gridDim.x} * kThreads;
#pragma unroll 8
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += step) {
    const double value = g[i];
    sum += value * value;
  }
  sum = block_sum(sum, slots);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void norm_kernel(double* norm, const double* partial, int blocks) {
  SharedMemory shared;
  double* slots = shared.array<double>(kWarp);
  double sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < blocks; i += kThreads) sum += partial[i];
  sum = block_sum(sum, slots);
  if (threadIdx.x == 0) *norm = sqrt(sum);
}

void norm(Context& context, const GradNorm& a) {
  const int64_t count = a.g.size();
  const int64_t blocks = std::clamp<int64_t>((count + kThreads - 1) / kThreads, 1, kNormBlocks);
  const ArenaScope scope(*context.scratch);
  auto* partial = context.scratch->allocate<double>(blocks);
  const size_t shared_bytes = SharedSize().array<double>(kWarp).bytes();
  launch(context, sum_of_squares_kernel,
         Shape{dim3(static_cast<unsigned>(blocks)), kThreads, shared_bytes}, partial,
         pointer<float>(a.g), count);
  launch(context, norm_kernel, Shape{dim3(1), kThreads, shared_bytes}, pointer<double>(a.norm),
         partial, blocks);
}

// Neighbouring segments of equal treatment, as one.
struct Run {
  int64_t first, count;
  int64_t first_tile;  // of all tiles of the launch
  bool decay;
};
constexpr int kRuns = 96;            // 3 KiB of the 4 a kernel's arguments may take
constexpr int64_t kTileSize = 8192;  // values a block updates

struct RunTable {
  Run run[kRuns];
  int count = 0;
  int64_t tiles = 0;

  void add(const AdamwSegment& segment) {
    Run* last = count ? &run[count - 1] : nullptr;
    if (last && last->decay == segment.decay && last->first + last->count == segment.first) {
      last->count += segment.count;
    } else {
      run[count++] = {segment.first, segment.count, tiles, segment.decay};
      last = &run[count - 1];
    }
    tiles = last->first_tile + (last->count + kTileSize - 1) / kTileSize;
  }
};

// The scalars of one step, worked out on the host in double.
struct Step {
  float keep_m, take_m, keep_v, take_v;  // b1, 1 - b1, b2, 1 - b2
  float rate;                            // lr / (1 - b1^t)
  float correction_v;                    // 1 / (1 - b2^t)
  float eps, shrink;                     // 1 - lr weight_decay
  double max_norm;

  explicit Step(const Adamw& a)
      : keep_m(static_cast<float>(a.beta1)),
        take_m(static_cast<float>(1 - a.beta1)),
        keep_v(static_cast<float>(a.beta2)),
        take_v(static_cast<float>(1 - a.beta2)),
        rate(static_cast<float>(a.lr / (1 - std::pow(a.beta1, static_cast<double>(a.step))))),
        correction_v(static_cast<float>(1 / (1 - std::pow(a.beta2, static_cast<double>(a.step))))),
        eps(static_cast<float>(a.eps)),
        shrink(static_cast<float>(1 - a.lr * a.weight_decay)),
        max_norm(a.max_norm) {}
};

template <class T>
struct Buffers {
  float *w, *m, *v;
  T* copy;  // null: not wanted
  const float* g;
  const double* norm;
};

// Factor that brings the gradient's norm down to max_norm; a NaN norm goes through.
__device__ inline float clip_factor(const double* norm, double max_norm) {
  if (!(max_norm > 0)) return 1;
  const double padded = *norm + 1e-6;
  return padded <= max_norm ? 1.0f : static_cast<float>(max_norm / padded);
}

__device__ inline const Run& run_of(const RunTable& table, int64_t tile) {
  int found = 0, end = table.count;  // the last run that starts at or before the tile
  while (end - found > 1) {
    const int middle = (found + end) / 2;
    (table.run[middle].first_tile <= tile ? found : end) = middle;
  }
  return table.run[found];
}

// __grid_constant__: a table indexed at run time would otherwise be copied to every thread's stack.
template <class T, int N>
__global__ void adamw_kernel(Buffers<T> a, Step step, const __grid_constant__ RunTable table) {
  const Run& run = run_of(table, blockIdx.x);
  const float clip = clip_factor(a.norm, step.max_norm);
  const float shrink = run.decay ? step.shrink : 1.0f;
  const int64_t first = (blockIdx.x - run.first_tile) * kTileSize;
  const int64_t last = first + kTileSize < run.count ? first + kTileSize : run.count;
  for (int64_t i = run.first + first + threadIdx.x * N; i < run.first + last; i += kThreads * N) {
    float w[N], m[N], v[N], g[N];
    load(w, a.w + i);
    load(m, a.m + i);
    load(v, a.v + i);
    load(g, a.g + i);
    for (int k = 0; k < N; ++k) {
      const float cg = clip * g[k];
      m[k] = step.keep_m * m[k] + step.take_m * cg;
      v[k] = step.keep_v * v[k] + step.take_v * (cg * cg);
      w[k] = shrink * w[k] - step.rate * m[k] / (sqrtf(v[k] * step.correction_v) + step.eps);
    }
    store(a.w + i, w);
    store(a.m + i, m);
    store(a.v + i, v);
    if (a.copy) store(a.copy + i, w);
  }
}

// A vector must not reach over the end of a run.
bool whole_vectors(const RunTable& table) {
  for (int i = 0; i < table.count; ++i)
    if (table.run[i].first % kVector != 0 || table.run[i].count % kVector != 0) return false;
  return true;
}

template <class T>
void update_runs(Context& context, const Adamw& a, const RunTable& table) {
  const Buffers<T> buffers{pointer<float>(a.w), pointer<float>(a.m), pointer<float>(a.v),
                           pointer<T>(a.copy),  pointer<float>(a.g), pointer<double>(a.norm)};
  const Shape shape{dim3(static_cast<unsigned>(table.tiles)), kThreads};
  const auto aligned = [](const View& flat) {
    return flat.empty() || reinterpret_cast<uintptr_t>(flat.data) % 16 == 0;
  };
  const bool wide = whole_vectors(table) && aligned(a.w) && aligned(a.m) && aligned(a.v) &&
                    aligned(a.copy) && aligned(a.g);
  launch(context, wide ? adamw_kernel<T, kFloatVector> : adamw_kernel<T, 1>, shape, buffers,
         Step(a), table);
}

void update(Context& context, const Adamw& a) {
  visit_compute(context, [&]<class T>(T) {
    RunTable table;
    for (int64_t i = 0; i < a.segment_count; ++i) {
      if (!a.segments[i].trained || a.segments[i].count == 0) continue;
      if (table.count == kRuns) {
        update_runs<T>(context, a, table);
        table = {};
      }
      table.add(a.segments[i]);
    }
    update_runs<T>(context, a, table);
  });
}

KLA_OP(grad_norm, KLA_BACKEND, norm);
KLA_OP(adamw, KLA_BACKEND, update);

}  // namespace
}  // namespace kla::KLA_BACKEND
