// The twins of wgmma.cuh: every element of accumulators and operands, placed here as the PTX manual
// states it, against products of the host; and what a product that is under way does to those who
// do not wait for it.
#include "kernels/cuda/wgmma.cuh"

#include <algorithm>
#include <cmath>

#include "tests/simt/harness.h"

namespace kla::simt::testing {
namespace {

constexpr unsigned kThreads = 128;
constexpr int kRows = 64, kDepth = 16, kBlocks = 6, kColumns = 16 * kBlocks;
using Matrix = std::vector<float>;

// Small integers: exact in bf16 and in every order of summation.
Matrix integers(int count, uint32_t seed) {
  Matrix m(static_cast<size_t>(count));
  for (float& x : m) {
    seed = seed * 1664525u + 1013904223u;
    x = static_cast<float>(static_cast<int>(seed >> 24) % 17 - 8);
  }
  return m;
}

struct Block {  // of 16 columns, as Accumulator (mma.cuh)
  float x[2][4];
};

// PTX manual, wgmma.m64nNk16: element i of a thread's accumulators is in row 16 warp + lane / 4 and
// 8 more for the second pair of four, column 8 (i / 4) + 2 (lane % 4) + i % 2.
int row_of_element(int i) {
  const int thread = static_cast<int>(threadIdx.x);
  return thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
}
int column_of_element(int i) {
  return i / 4 * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + i % 2;
}
void load_accumulators(Block (&c)[kBlocks], const float* from) {
  for (int i = 0; i < 8 * kBlocks; ++i)
    c[i / 8].x[i / 4 % 2][i % 4] = from[row_of_element(i) * kColumns + column_of_element(i)];
}
void store_accumulators(const Block (&c)[kBlocks], float* to) {
  for (int i = 0; i < 8 * kBlocks; ++i)
    to[row_of_element(i) * kColumns + column_of_element(i)] = c[i / 8].x[i / 4 % 2][i % 4];
}
// Element i of the left operand: as mma.m16n8k16 has it, in each warp's rows.
void load_left(uint32_t (&a)[4], const float* from) {
  const int thread = static_cast<int>(threadIdx.x), group = thread % 32 / 4, t = thread % 4;
  for (int r = 0; r < 4; ++r) {
    const float* pair = from + (thread / 32 * 16 + group + r % 2 * 8) * kDepth + 2 * t + r / 2 * 8;
    a[r] = bf16(pair[0]).bits | static_cast<uint32_t>(bf16(pair[1]).bits) << 16;
  }
}

// An operand in shared memory, [16 of k][`width` of n] with at most 96, in cores whose distances
// are no multiples of their size.
constexpr int kNextAlongN = 144, kNextAlongK = kColumns / 8 * kNextAlongN + 16;
constexpr int kOperandElements = 2 * kNextAlongK / 2;

template <class Value>
void place_operand(bf16* shared, int width, bool transposed, Value&& value) {
  for (int i = static_cast<int>(threadIdx.x); i < kDepth * width; i += static_cast<int>(kThreads)) {
    const int k = i / width, n = i % width;
    const int within = transposed ? k % 8 * 8 + n % 8 : n % 8 * 8 + k % 8;
    shared[(k / 8 * kNextAlongK + n / 8 * kNextAlongN) / 2 + within] = bf16(value(k, n));
  }
}
void place_right(bf16* shared, const float* b, bool transposed) {
  place_operand(shared, kColumns, transposed, [&](int k, int n) { return b[k * kColumns + n]; });
}
size_t operand_bytes() {
  return SharedSize().array<bf16>(kOperandElements).bytes();
}

template <int kFirst, int kCount, bool kTransposed, bool kAdd>
__global__ void product_kernel(const float* a, const float* b, float* c) {
  SharedMemory shared;
  auto* right = shared.array<bf16>(kOperandElements);
  place_right(right, b, kTransposed);
  share_with_tensor_cores();
  __syncthreads();
  uint32_t left[4];
  Block sums[kBlocks];
  load_left(left, a);
  load_accumulators(sums, c);
  warpgroup_begin();
  warpgroup_multiply<kFirst, kCount, kTransposed, kAdd>(
      sums, left, shared_operand(right, kNextAlongK, kNextAlongN));
  warpgroup_commit();
  warpgroup_wait<0>();
  store_accumulators(sums, c);
}

template <int kCount, bool kTransposedA, bool kTransposedB, bool kAdd>
__global__ void shared_product_kernel(const float* a, const float* b, float* c) {
  SharedMemory shared;
  auto* left = shared.array<bf16>(kOperandElements);
  auto* right = shared.array<bf16>(kOperandElements);
  place_operand(left, kRows, kTransposedA, [&](int k, int row) { return a[row * kDepth + k]; });
  place_right(right, b, kTransposedB);
  share_with_tensor_cores();
  __syncthreads();
  Block sums[kBlocks], of_product[kCount];
  load_accumulators(sums, c);
  std::copy_n(sums, kCount, of_product);
  warpgroup_begin();
  warpgroup_multiply<kCount, kTransposedA, kTransposedB, kAdd>(
      of_product, shared_operand(left, kNextAlongK, kNextAlongN),
      shared_operand(right, kNextAlongK, kNextAlongN));
  warpgroup_commit();
  warpgroup_wait<0>();
  std::copy_n(of_product, kCount, sums);
  store_accumulators(sums, c);
}

// Columns from 16 `first` on are the product's first.
Matrix multiply(const Matrix& a, const Matrix& b, Matrix c, int first, int count, bool add) {
  for (int i = 0; i < kRows; ++i)
    for (int n = 0; n < 16 * count; ++n) {
      float& sum = c[static_cast<size_t>(i * kColumns + 16 * first + n)];
      if (!add) sum = 0;
      for (int k = 0; k < kDepth; ++k)
        sum += a[static_cast<size_t>(i * kDepth + k)] * b[static_cast<size_t>(k * kColumns + n)];
    }
  return c;
}

template <int kFirst, int kCount, bool kTransposed, bool kAdd>
void expect_product(const Matrix& a, const Matrix& b, const Matrix& c) {
  Buffer<float> A(a), B(b), C(c);
  launch(context(), product_kernel<kFirst, kCount, kTransposed, kAdd>,
         {1, kThreads, operand_bytes()}, A.data(), B.data(), C.data());
  EXPECT_EQ(C.host(), multiply(a, b, c, kFirst, kCount, kAdd))
      << "blocks from " << kFirst << ": " << kCount;
}

template <int kFirst, int kCount>
void expect_products() {
  const Matrix a = integers(kRows * kDepth, 1), b = integers(kDepth * kColumns, 2),
               c = integers(kRows * kColumns, 3);
  expect_product<kFirst, kCount, false, false>(a, b, c);
  expect_product<kFirst, kCount, false, true>(a, b, c);
  expect_product<kFirst, kCount, true, false>(a, b, c);
  expect_product<kFirst, kCount, true, true>(a, b, c);
}

template <int kCount, bool kTransposedA, bool kTransposedB, bool kAdd>
void expect_shared_product(const Matrix& a, const Matrix& b, const Matrix& c) {
  Buffer<float> A(a), B(b), C(c);
  launch(context(), shared_product_kernel<kCount, kTransposedA, kTransposedB, kAdd>,
         {1, kThreads, 2 * operand_bytes()}, A.data(), B.data(), C.data());
  EXPECT_EQ(C.host(), multiply(a, b, c, 0, kCount, kAdd))
      << kCount << " blocks, transposed: " << kTransposedA << kTransposedB;
}
template <bool kTransposedA, bool kTransposedB>
void expect_shared_products() {
  const Matrix a = integers(kRows * kDepth, 10), b = integers(kDepth * kColumns, 11),
               c = integers(kRows * kColumns, 12);
  expect_shared_product<4, kTransposedA, kTransposedB, false>(a, b, c);
  expect_shared_product<4, kTransposedA, kTransposedB, true>(a, b, c);
  expect_shared_product<6, kTransposedA, kTransposedB, true>(a, b, c);
}

// One k at a time: every element of the left column times every element of the right row.
template <bool kTransposed>
void expect_every_element() {
  const Matrix all_a = integers(kRows * kDepth, 4), all_b = integers(kDepth * kColumns, 5),
               zeros(static_cast<size_t>(kRows * kColumns));
  for (int k = 0; k < kDepth; ++k) {
    Matrix a(all_a.size()), b(all_b.size());
    for (int i = 0; i < kRows; ++i) {
      const auto at = static_cast<size_t>(i * kDepth + k);
      a[at] = all_a[at] + 9;  // none is zero
    }
    for (int n = 0; n < kColumns; ++n) {
      const auto at = static_cast<size_t>(k * kColumns + n);
      b[at] = all_b[at] + 9;
    }
    expect_product<0, kBlocks, kTransposed, true>(a, b, zeros);
    expect_shared_product<kBlocks, kTransposed, kTransposed, true>(a, b, zeros);
  }
}

TEST(Wgmma, EveryElementIsInItsPlace) {
  expect_every_element<false>();
  expect_every_element<true>();
}

TEST(Wgmma, ProductsFillTheirBlocksAndNoOther) {
  expect_products<0, 1>();
  expect_products<0, 2>();
  expect_products<0, 3>();
  expect_products<0, 4>();
  expect_products<0, 6>();
  expect_products<1, 3>();
  expect_products<2, 4>();
  expect_products<5, 1>();
}

TEST(Wgmma, LeftOperandsMayLieInSharedMemory) {
  expect_shared_products<false, false>();
  expect_shared_products<false, true>();
  expect_shared_products<true, false>();
  expect_shared_products<true, true>();
}

TEST(Wgmma, AnyScheduleGivesTheSame) {
  for (uint64_t seed : {1, 2, 3}) {
    const Schedule schedule(seed);
    expect_products<0, 4>();
  }
}

// What the blocks hold at four points: two products are committed, each into two blocks of its own,
// the second of which reads its operand from `kSecond` blocks further along n.
constexpr int kSecond = 3;
__global__ void pending_kernel(const float* a, const float* b, float* c) {
  SharedMemory shared;
  auto* right = shared.array<bf16>(kOperandElements);
  place_right(right, b, false);
  share_with_tensor_cores();
  __syncthreads();
  uint32_t left[4];
  Block sums[kBlocks] = {};
  load_left(left, a);
  const SharedOperand operand = shared_operand(right, kNextAlongK, kNextAlongN);
  warpgroup_begin();
  warpgroup_multiply<0, 2, false, false>(sums, left, operand);
  warpgroup_commit();
  warpgroup_multiply<kSecond, 2, false, false>(sums, left,
                                               advanced(operand, 2 * kSecond * kNextAlongN));
  warpgroup_commit();
  store_accumulators(sums, c);
  warpgroup_wait<1>();
  store_accumulators(sums, c + kRows * kColumns);
  warpgroup_wait<0>();
  store_accumulators(sums, c + 2 * kRows * kColumns);
}

TEST(Wgmma, AccumulatorsAreNaNUntilTheirGroupIsWaitedFor) {
  const Matrix a = integers(kRows * kDepth, 6), b = integers(kDepth * kColumns, 7);
  const Matrix product =
      multiply(a, b, Matrix(static_cast<size_t>(kRows * kColumns)), 0, kBlocks, false);
  Buffer<float> A(a), B(b), C(static_cast<size_t>(3 * kRows * kColumns));
  launch(context(), pending_kernel, {1, kThreads, operand_bytes()}, A.data(), B.data(), C.data());
  const Matrix got = C.host();
  for (int waited = 0; waited < 3; ++waited)
    for (int i = 0; i < kRows * kColumns; ++i) {
      const int block = i % kColumns / 16;
      const float x = got[static_cast<size_t>(waited * kRows * kColumns + i)];
      if (block == 2 || block == 5) {
        EXPECT_EQ(x, 0) << "block " << block << " is no product's";
      } else if (waited <= block / kSecond) {
        EXPECT_TRUE(std::isnan(x)) << "block " << block << " after " << waited << " groups";
      } else {
        EXPECT_EQ(x, product[static_cast<size_t>(i)]) << "block " << block << ", element " << i;
      }
    }
}

// Zeros go where the operand lies: before the wait, or after it.
__global__ void overwrite_kernel(const float* a, const float* b, float* c, bool before) {
  SharedMemory shared;
  auto* right = shared.array<bf16>(kOperandElements);
  place_right(right, b, false);
  share_with_tensor_cores();
  __syncthreads();
  uint32_t left[4];
  Block sums[kBlocks] = {};
  load_left(left, a);
  warpgroup_begin();
  warpgroup_multiply<0, kBlocks, false, true>(sums, left,
                                              shared_operand(right, kNextAlongK, kNextAlongN));
  warpgroup_commit();
  if (!before) {
    warpgroup_wait<0>();
    __syncthreads();
  }
  for (int i = static_cast<int>(threadIdx.x); i < kOperandElements; i += static_cast<int>(kThreads))
    right[i] = bf16(0.0f);
  warpgroup_wait<0>();
  store_accumulators(sums, c);
}

TEST(Wgmma, AnOperandOverwrittenBeforeTheWaitIsCaughtByTheComparison) {
  const Matrix a = integers(kRows * kDepth, 8), b = integers(kDepth * kColumns, 9),
               zeros(static_cast<size_t>(kRows * kColumns));
  const Matrix product = multiply(a, b, zeros, 0, kBlocks, false);
  for (const bool before : {false, true}) {
    Buffer<float> A(a), B(b), C(zeros);
    launch(context(), overwrite_kernel, {1, kThreads, operand_bytes()}, A.data(), B.data(),
           C.data(), before);
    EXPECT_EQ(C.host() == product, !before);
  }
}

// One core more along k than the array has.
__global__ void outside_kernel(float* c) {
  SharedMemory shared;
  auto* right = shared.array<bf16>(kOperandElements);
  for (int i = 0; i < kOperandElements; ++i) right[i] = bf16(0.0f);
  const uint32_t left[4] = {};
  Block sums[kBlocks] = {};
  __syncthreads();
  warpgroup_begin();
  warpgroup_multiply<0, kBlocks, false, true>(
      sums, left, advanced(shared_operand(right, kNextAlongK, kNextAlongN), kNextAlongK));
  warpgroup_commit();
  warpgroup_wait<0>();
  store_accumulators(sums, c);
}

TEST(Wgmma, AnOperandOutsideSharedMemoryIsAnErrorWhereItIsWaitedFor) {
  Buffer<float> C(static_cast<size_t>(kRows * kColumns));
  const std::string error = error_of([&] {
    launch(context(), outside_kernel, {1, kThreads, operand_bytes()}, C.data());
  });
  EXPECT_NE(error.find("warpgroup_wait"), std::string::npos) << error;
}

}  // namespace
}  // namespace kla::simt::testing
