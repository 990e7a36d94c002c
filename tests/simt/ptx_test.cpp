// The PTX twins: every element of every fragment layout, written here as the PTX manual states it
// (element index of a thread -> row and column), against products and transposes of the host.
#include <cmath>

#include "tests/simt/harness.h"

namespace kla::simt::testing {
namespace {

constexpr unsigned kLanes = 32;
using Matrix = std::vector<float>;

uint32_t pack(float low, float high) {
  return bf16(low).bits | static_cast<uint32_t>(bf16(high).bits) << 16;
}

// PTX manual, mma.m16n8k16 with 16-bit operands: element i of a thread.
__global__ void mma_bf16_kernel(const float* a, const float* b, float* c) {
  const int group = static_cast<int>(threadIdx.x) >> 2,
            in_group = static_cast<int>(threadIdx.x) & 3;
  const auto a_at = [&](int i) {
    const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
    return a[row * 16 + in_group * 2 + (i & 1) + (i < 4 ? 0 : 8)];
  };
  const auto b_at = [&](int i) {
    return b[(in_group * 2 + (i & 1) + (i < 2 ? 0 : 8)) * 8 + group];
  };
  const uint32_t A[4] = {pack(a_at(0), a_at(1)), pack(a_at(2), a_at(3)), pack(a_at(4), a_at(5)),
                         pack(a_at(6), a_at(7))};
  const uint32_t B[2] = {pack(b_at(0), b_at(1)), pack(b_at(2), b_at(3))};
  float C[4];
  for (int i = 0; i < 4; ++i) C[i] = c[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)];
  mma_m16n8k16(C, A, B);
  for (int i = 0; i < 4; ++i) c[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)] = C[i];
}

// PTX manual, mma.m16n8k8 with tf32 operands.
__global__ void mma_tf32_kernel(const float* a, const float* b, float* c) {
  const int group = static_cast<int>(threadIdx.x) >> 2,
            in_group = static_cast<int>(threadIdx.x) & 3;
  uint32_t A[4], B[2];
  for (int i = 0; i < 4; ++i) {
    const int row = i == 0 || i == 2 ? group : group + 8;
    A[i] = to_tf32(a[row * 8 + (i < 2 ? in_group : in_group + 4)]);
  }
  for (int i = 0; i < 2; ++i) B[i] = to_tf32(b[(i == 0 ? in_group : in_group + 4) * 8 + group]);
  float C[4];
  for (int i = 0; i < 4; ++i) C[i] = c[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)];
  mma_m16n8k8(C, A, B);
  for (int i = 0; i < 4; ++i) c[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)] = C[i];
}

Matrix multiply(const Matrix& a, const Matrix& b, Matrix c, size_t depth) {
  for (size_t i = 0; i < 16; ++i)
    for (size_t j = 0; j < 8; ++j)
      for (size_t k = 0; k < depth; ++k) c[i * 8 + j] += a[i * depth + k] * b[k * 8 + j];
  return c;
}

// Small integers: exact in bf16, tf32 and in every order of summation.
Matrix integers(size_t count, uint32_t seed) {
  Matrix m(count);
  for (float& x : m) {
    seed = seed * 1664525u + 1013904223u;
    x = static_cast<float>(static_cast<int>(seed >> 24) % 17 - 8);
  }
  return m;
}

using MmaKernel = void (*)(const float*, const float*, float*);

void expect_product(MmaKernel kernel, size_t depth, const Matrix& a, const Matrix& b,
                    const Matrix& c) {
  Buffer<float> A(a), B(b), C(c);
  launch(context(), kernel, {1, kLanes}, A.data(), B.data(), C.data());
  EXPECT_EQ(C.host(), multiply(a, b, c, depth));
}

void expect_every_element(MmaKernel kernel, size_t depth) {
  const Matrix b = integers(depth * 8, 1), c = integers(16 * 8, 2),
               full_a = integers(16 * depth, 3);
  for (size_t i = 0; i < 16 * depth; ++i) {
    Matrix a(16 * depth, 0);
    a[i] = 3;
    expect_product(kernel, depth, a, b, c);
  }
  for (size_t i = 0; i < depth * 8; ++i) {
    Matrix single(depth * 8, 0);
    single[i] = 5;
    expect_product(kernel, depth, full_a, single, c);
  }
  for (uint64_t seed : {0, 1, 2}) {
    const Schedule schedule(seed);
    expect_product(kernel, depth, full_a, b, c);
  }
}

TEST(Mma, EveryElementOfTheBf16FragmentsIsInItsPlace) {
  expect_every_element(mma_bf16_kernel, 16);
}
TEST(Mma, EveryElementOfTheTf32FragmentsIsInItsPlace) {
  expect_every_element(mma_tf32_kernel, 8);
}

// A wrong fragment index gives a wrong product: the comparison is not blind.
__global__ void mma_swapped_kernel(const float* a, const float* b, float* c) {
  const int group = static_cast<int>(threadIdx.x) >> 2, t = static_cast<int>(threadIdx.x) & 3;
  const auto pair = [&](int row, int k) { return pack(a[row * 16 + k], a[row * 16 + k + 1]); };
  const uint32_t A[4] = {pair(group, 2 * t), pair(group, 2 * t + 8), pair(group + 8, 2 * t),
                         pair(group + 8, 2 * t + 8)};  // registers 1 and 2 are exchanged
  const uint32_t B[2] = {pack(b[2 * t * 8 + group], b[(2 * t + 1) * 8 + group]),
                         pack(b[(2 * t + 8) * 8 + group], b[(2 * t + 9) * 8 + group])};
  float C[4] = {};
  mma_m16n8k16(C, A, B);
  for (int i = 0; i < 4; ++i) c[(i < 2 ? group : group + 8) * 8 + t * 2 + (i & 1)] = C[i];
}

TEST(Mma, AWrongFragmentIndexIsCaughtByTheComparison) {
  const Matrix a = integers(256, 1), b = integers(128, 2);
  Buffer<float> A(a), B(b), C(Matrix(128, 0));
  launch(context(), mma_swapped_kernel, {1, kLanes}, A.data(), B.data(), C.data());
  EXPECT_NE(C.host(), multiply(a, b, Matrix(128, 0), 16));
}

__global__ void ldmatrix_kernel(const uint16_t* source, uint32_t* out, bool transposed, bool four) {
  SharedMemory shared;
  constexpr int kStride = 24;  // elements from row to row: 16-byte aligned, not dense
  auto* rows = shared.array<uint16_t>(32 * kStride);
  const unsigned lane = threadIdx.x;
  for (unsigned j = 0; j < 8; ++j) rows[lane * kStride + j] = source[lane * 8 + j];
  __syncwarp();
  const void* mine = rows + lane * kStride;
  uint32_t r[4] = {}, two[2];
  if (four) {
    if (transposed)
      ldmatrix_x4_trans(r, mine);
    else
      ldmatrix_x4(r, mine);
  } else {
    if (transposed)
      ldmatrix_x2_trans(two, mine);
    else
      ldmatrix_x2(two, mine);
    r[0] = two[0], r[1] = two[1];
  }
  for (unsigned m = 0; m < 4; ++m) out[lane * 4 + m] = r[m];
}

TEST(Ldmatrix, LanesGetTheirElements) {
  std::vector<uint16_t> source(32 * 8);
  for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<uint16_t>(1000 + i);
  const auto at = [&](size_t m, size_t row, size_t column) {
    return uint32_t{source[(m * 8 + row) * 8 + column]};
  };
  for (uint64_t seed : {0, 1, 2})
    for (bool transposed : {false, true})
      for (bool four : {false, true}) {
        const Schedule schedule(seed);
        Buffer<uint16_t> in(source);
        Buffer<uint32_t> out(32 * 4);
        launch(context(), ldmatrix_kernel,
               {1, kLanes, SharedSize().array<uint16_t>(32 * 24).bytes()}, in.data(), out.data(),
               transposed, four);
        const std::vector<uint32_t> got = out.host();
        for (size_t lane = 0; lane < kLanes; ++lane)
          for (size_t m = 0; m < (four ? 4 : 2); ++m) {
            const size_t row = lane / 4, column = lane % 4 * 2;
            const uint32_t expected = transposed
                                          ? at(m, column, row) | at(m, column + 1, row) << 16
                                          : at(m, row, column) | at(m, row, column + 1) << 16;
            EXPECT_EQ(got[lane * 4 + m], expected) << "lane " << lane << " matrix " << m;
          }
      }
}

// Stage s is copied as group s; what the shared memory holds is read at every step of waiting.
__global__ void async_kernel(const float4* source, float4* out) {
  SharedMemory shared;
  float4* stage = shared.array<float4>(4);
  for (int s = 0; s < 4; ++s) {
    cp_async_16(stage + s, source + s, s != 2);  // stage 2 becomes zeros
    if (s < 3) cp_async_commit();                // stage 3 is never committed
  }
  const auto look = [&](int step) {
    for (int s = 0; s < 4; ++s) out[step * 4 + s] = stage[s];
  };
  look(0);
  cp_async_wait<2>();
  look(1);
  cp_async_wait<1>();
  look(2);
  cp_async_wait<0>();
  look(3);
}

TEST(Async, CopiesLandWhenTheirGroupIsWaitedFor) {
  std::vector<float4> source;
  for (int i = 0; i < 4; ++i) {
    const auto x = static_cast<float>(i + 1);
    source.push_back({x, -x, x, -x});
  }
  Buffer<float4> in(source), out(16);
  launch(context(), async_kernel, {1, 1, SharedSize().array<float4>(4).bytes()}, in.data(),
         out.data());
  const std::vector<float4> got = out.host();
  for (size_t step = 0; step < 4; ++step)
    for (size_t stage = 0; stage < 4; ++stage) {
      const float x = got[step * 4 + stage].x, w = got[step * 4 + stage].w;
      if (stage >= step) {
        EXPECT_TRUE(std::isnan(x) && std::isnan(w)) << "stage " << stage << " at step " << step;
      } else {
        EXPECT_EQ(x, stage == 2 ? 0 : source[stage].x) << "stage " << stage << " at step " << step;
        EXPECT_EQ(w, stage == 2 ? 0 : source[stage].w);
      }
    }
}

__global__ void conditional_kernel(const float4* source, float4* out) {
  SharedMemory shared;
  float4* stage = shared.array<float4>(3);
  for (int s = 0; s < 3; ++s) stage[s] = {9, 9, 9, 9};
  for (int s = 0; s < 3; ++s) cp_async_16_if(s != 1, stage + s, source, s != 2);
  cp_async_commit();
  cp_async_wait<0>();
  for (int s = 0; s < 3; ++s) out[s] = stage[s];
}

TEST(Async, AnUnwantedCopyTouchesNothing) {
  Buffer<float4> in(std::vector<float4>{{1, 2, 3, 4}}), out(3);
  launch(context(), conditional_kernel, {1, 1, SharedSize().array<float4>(3).bytes()}, in.data(),
         out.data());
  const std::vector<float4> got = out.host();
  EXPECT_EQ(got[0].w, 4);
  EXPECT_EQ(got[1].w, 9);
  EXPECT_EQ(got[2].w, 0);
}

// The nearest number of 10 bits of fraction; halfway, the one further from zero.
float nearest_tf32(float x) {
  int exponent;
  const double fraction = std::frexp(static_cast<double>(x), &exponent);  // in [1/2, 1)
  const double scaled = std::ldexp(fraction, 11);
  return static_cast<float>(std::ldexp(std::round(scaled), exponent - 11));
}

TEST(Numbers, Tf32RoundsTiesAwayFromZero) {
  const float tie = 1.0f + std::ldexp(1.0f, -11);
  EXPECT_EQ(__uint_as_float(to_tf32(tie)), 1.0f + std::ldexp(1.0f, -10));
  EXPECT_EQ(__uint_as_float(to_tf32(-tie)), -1.0f - std::ldexp(1.0f, -10));
  for (int i = 0; i < 4000; ++i) {
    const float x = std::ldexp(std::sin(static_cast<float>(i)), i % 60 - 30);
    EXPECT_EQ(__uint_as_float(to_tf32(x)), nearest_tf32(x)) << x;
  }
  EXPECT_TRUE(std::isinf(__uint_as_float(to_tf32(INFINITY))));
  EXPECT_TRUE(std::isnan(__uint_as_float(to_tf32(NAN))));
}

TEST(Numbers, FastExponentialIsFlushedBelowTheNormalNumbers) {
  for (float x = 0; x > -126; x -= 0.37f) EXPECT_FLOAT_EQ(exp2_fast(x), std::exp2(x)) << x;
  EXPECT_EQ(exp2_fast(-126.5f), 0);
  EXPECT_EQ(exp2_fast(-INFINITY), 0);
}

}  // namespace
}  // namespace kla::simt::testing
