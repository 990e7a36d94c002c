// Embedding lookup and its scatter-add without atomics. Backward sorts the pairs (token, m) in two
// launches: tiles in shared memory, then every pair finds its rank among all tiles by binary
// search. The rows of one token then lie together in the order of m, and one warp per 128 columns
// adds them up. A token outside the vocabulary gives NaN and no gradient: the loss shows it.
#include "kernels/cuda/vector.cuh"
#include "kernels/ops.h"

namespace kla::KLA_BACKEND {
namespace {

template <class T, int N>
__global__ void embedding_forward_kernel(Rows<float> x, const int32_t* tokens, Rows<T> table,
                                         int64_t vocabulary, int64_t D) {
  const int64_t m = blockIdx.x, token = tokens[m];
  const bool known = token >= 0 && token < vocabulary;
  for (int64_t c = int64_t{threadIdx.x} * N; c < D; c += int64_t{blockDim.x} * N) {
    float row[N];
    for (int i = 0; i < N; ++i) row[i] = nanf("");
    if (known) load(row, table[token] + c);
    store(x[m] + c, row);
  }
}

// Pairs are (token << 32) + m: all different, so any correct sort gives one order. Unknown tokens
// and the rest of the last tile sort to the end.
constexpr int kTile = 2048;
constexpr unsigned kSortThreads = 512;
constexpr int64_t kNoPair = INT64_MAX;

// Bitonic sort of one tile.
__global__ void sort_tiles_kernel(int64_t* pairs, const int32_t* tokens, int64_t M,
                                  int64_t vocabulary) {
  SharedMemory shared;
  int64_t* tile = shared.array<int64_t>(kTile);
  const int64_t first = int64_t{blockIdx.x} * kTile;
  for (int i = static_cast<int>(threadIdx.x); i < kTile; i += kSortThreads) {
    const int64_t m = first + i, token = m < M ? tokens[m] : -1;
    tile[i] = token >= 0 && token < vocabulary ? (token << 32) + m : kNoPair;
  }
  for (int length = 2; length <= kTile; length *= 2) {
    for (int distance = length / 2; distance > 0; distance /= 2) {
      __syncthreads();
      for (int k = static_cast<int>(threadIdx.x); k < kTile / 2; k += kSortThreads) {
        const int low = k / distance * 2 * distance + k % distance, high = low + distance;
        const bool ascending = (low & length) == 0;
        const int64_t a = tile[low], b = tile[high];
        if ((a > b) == ascending) {
          tile[low] = b;
          tile[high] = a;
        }
      }
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kTile; i += kSortThreads)
    pairs[first + i] = tile[i];
}

// How many pairs of a sorted tile are smaller.
__device__ inline int rank_in(const int64_t* tile, int64_t pair) {
  int below = 0;
  for (int step = kTile / 2; step > 0; step /= 2)
    if (tile[below + step - 1] < pair) below += step;
  return below + (tile[below] < pair ? 1 : 0);
}

__global__ void merge_tiles_kernel(int64_t* sorted, const int64_t* pairs, int64_t tiles) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t pair = pairs[i];
  if (pair == kNoPair) return;
  int64_t rank = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) rank += rank_in(pairs + tile * kTile, pair);
  sorted[rank] = pair;
}

constexpr int kColumns = 128;  // of one warp: four neighbouring floats, or strided ones, a lane
constexpr unsigned kWarps = 8;

// A warp per sorted pair and block of columns; those whose pair begins a token's run add the run.
// Behind the last pair `sorted` holds -1.
template <int N>
__global__ void embedding_backward_kernel(Rows<float> dtable, Rows<float> dx, const int64_t* sorted,
                                          int64_t M, int64_t D) {
  constexpr int kTurns = kColumns / kWarp / N, kAtOnce = 8;
  const int64_t i = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (i >= M || sorted[i] < 0) return;
  const int64_t token = sorted[i] >> 32;
  if (i > 0 && sorted[i - 1] >> 32 == token) return;
  const int64_t lane_column = int64_t{blockIdx.y} * kColumns + threadIdx.x % kWarp * N;
  for (int turn = 0; turn < kTurns; ++turn) {
    const int64_t c = lane_column + turn * kWarp * N;
    if (c >= D) return;
    float sum[N];
    load(sum, dtable[token] + c);
    for (int64_t next = i; next < M && sorted[next] >> 32 == token; next += kAtOnce) {
      float rows[kAtOnce][N];  // read together, added in order
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int64_t pair = next + k < M ? sorted[next + k] : -1;
        const bool same = pair >> 32 == token;
        for (int j = 0; j < N; ++j) rows[k][j] = 0;
        if (same) load(rows[k], dx[pair & 0xFFFFFFFF] + c);
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k)
        for (int j = 0; j < N; ++j) sum[j] += rows[k][j];
    }
    store(dtable[token] + c, sum);
  }
}

__global__ void fill_kernel(int64_t* values, int64_t value, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) values[i] = value;
}

void forward(Context& context, const EmbeddingForward& a) {
  const int64_t M = a.x.rows(), D = a.x.cols();
  visit_compute(context, [&]<class T>(T) {
    visit_width<kFloatVector>(
        [&]<int N>(Width<N>) {
          launch(context, embedding_forward_kernel<T, N>,
                 Shape{dim3(static_cast<unsigned>(M)), row_threads(D, N)}, rows<float>(a.x),
                 pointer<int32_t>(a.tokens), rows<T>(a.table), a.table.rows(), D);
        },
        a.x, a.table);
  });
}

void backward(Context& context, const EmbeddingBackward& a) {
  const int64_t M = a.dx.rows(), D = a.dx.cols(), tiles = (M + kTile - 1) / kTile;
  const ArenaScope scope(*context.scratch);
  auto* pairs = context.scratch->allocate<int64_t>(tiles * kTile);
  auto* sorted = context.scratch->allocate<int64_t>(tiles * kTile);
  const auto whole_tiles = static_cast<unsigned>(tiles);
  launch(context, sort_tiles_kernel,
         Shape{dim3(whole_tiles), kSortThreads, SharedSize().array<int64_t>(kTile).bytes()}, pairs,
         pointer<int32_t>(a.tokens), M, a.dtable.rows());
  const Shape per_pair{dim3(whole_tiles * (kTile / kSortThreads)), kSortThreads};
  launch(context, fill_kernel, per_pair, sorted, int64_t{-1}, tiles * kTile);
  launch(context, merge_tiles_kernel, per_pair, sorted, pairs, tiles);
  const dim3 grid(static_cast<unsigned>((M + kWarps - 1) / kWarps),
                  static_cast<unsigned>((D + kColumns - 1) / kColumns));
  const bool wide = vectorizable(a.dx) && vectorizable(a.dtable);
  launch(context, wide ? embedding_backward_kernel<4> : embedding_backward_kernel<1>,
         Shape{grid, kWarps * kWarp}, rows<float>(a.dtable), rows<float>(a.dx), sorted, M, D);
}

KLA_OP(embedding_forward, KLA_BACKEND, forward);
KLA_OP(embedding_backward, KLA_BACKEND, backward);

}  // namespace
}  // namespace kla::KLA_BACKEND
