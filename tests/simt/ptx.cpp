#include "tests/simt/ptx.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace kla::simt {
namespace {

using fibers::Site;
using fibers::Thread;
using fibers::Warp;

constexpr int kLanes = Warp::kLanes;

struct Row {  // of an 8x8 matrix
  uint16_t element[8];
};

// What the lanes give: A, B and the accumulator, by register.
struct Fragments {
  uint32_t a[4], b[2];
  float c[4];
};

struct Accumulators {
  float c[4];
};

template <int kMatrices>
void load_matrices(uint32_t (&r)[kMatrices], const void* row, bool transposed, const Site& site) {
  const Thread& t = fibers::running(site);
  fibers::check_shared_row(row, site);
  std::memcpy(&t.warp->brought<Row>(t.lane), row, sizeof(Row));
  fibers::meet(Warp::kAll, site, [&](Warp& warp) {
    for (int lane = 0; lane < kLanes; ++lane)
      for (int m = 0; m < kMatrices; ++m) {
        const auto at = [&](int i, int j) {
          return uint32_t{warp.brought<Row>(8 * m + i).element[j]};
        };
        const int i = lane / 4, j = lane % 4 * 2;
        warp.taken<uint32_t[kMatrices]>(lane)[m] =
            transposed ? at(j, i) | at(j + 1, i) << 16 : at(i, j) | at(i, j + 1) << 16;
      }
  });
  std::memcpy(r, &t.warp->taken<uint32_t[kMatrices]>(t.lane), sizeof(r));
}

float low_half(uint32_t pair) {
  return std::bit_cast<float>(pair << 16);
}
float high_half(uint32_t pair) {
  return std::bit_cast<float>(pair & 0xFFFF0000u);
}

// The operands of one product, out of the lanes' registers.
template <int kDepth>
struct Tile {
  float a[16][kDepth], b[kDepth][8], c[16][8];
};

void gather(Warp& warp, Tile<16>& tile) {  // bf16
  for (int lane = 0; lane < kLanes; ++lane) {
    const Fragments& f = warp.brought<Fragments>(lane);
    const int g = lane / 4, t = lane % 4;
    for (int r = 0; r < 4; ++r) {
      float* a = &tile.a[g + 8 * (r % 2)][2 * t + 8 * (r / 2)];
      a[0] = low_half(f.a[r]);
      a[1] = high_half(f.a[r]);
    }
    for (int r = 0; r < 2; ++r) {
      tile.b[2 * t + 8 * r][g] = low_half(f.b[r]);
      tile.b[2 * t + 8 * r + 1][g] = high_half(f.b[r]);
    }
  }
}

// The tensor core reads 19 bits of a tf32 operand.
float tf32(uint32_t bits) {
  return std::bit_cast<float>(bits & 0xFFFFE000u);
}

void gather(Warp& warp, Tile<8>& tile) {  // tf32
  for (int lane = 0; lane < kLanes; ++lane) {
    const Fragments& f = warp.brought<Fragments>(lane);
    const int g = lane / 4, t = lane % 4;
    for (int r = 0; r < 4; ++r) tile.a[g + 8 * (r % 2)][t + 4 * (r / 2)] = tf32(f.a[r]);
    for (int r = 0; r < 2; ++r) tile.b[t + 4 * r][g] = tf32(f.b[r]);
  }
}

template <int kDepth>
void multiply(Warp& warp) {
  Tile<kDepth> tile;
  gather(warp, tile);
  for (int lane = 0; lane < kLanes; ++lane)
    for (int r = 0; r < 4; ++r)
      tile.c[lane / 4 + 8 * (r / 2)][lane % 4 * 2 + r % 2] = warp.brought<Fragments>(lane).c[r];
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < kDepth; ++k)
      for (int j = 0; j < 8; ++j) tile.c[i][j] += tile.a[i][k] * tile.b[k][j];
  for (int lane = 0; lane < kLanes; ++lane)
    for (int r = 0; r < 4; ++r)
      warp.taken<Accumulators>(lane).c[r] = tile.c[lane / 4 + 8 * (r / 2)][lane % 4 * 2 + r % 2];
}

template <int kDepth>
void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Site& site) {
  const Thread& t = fibers::running(site);
  Fragments& f = t.warp->brought<Fragments>(t.lane);
  std::memcpy(f.a, a, sizeof(a));
  std::memcpy(f.b, b, sizeof(b));
  std::memcpy(f.c, c, sizeof(c));
  fibers::meet(Warp::kAll, site, [](Warp& warp) { multiply<kDepth>(warp); });
  std::memcpy(c, t.warp->taken<Accumulators>(t.lane).c, sizeof(c));
}

}  // namespace

void cp_async_16(void* shared, const void* global, bool valid, fibers::Place place) {
  const Site site{"cp_async_16", place};
  Thread& t = fibers::running(site);
  fibers::check_shared_row(shared, site);
  if (valid && reinterpret_cast<uintptr_t>(global) % 16 != 0)
    fibers::fail(site, "the global address is not a multiple of 16");
  std::memset(shared, 0xFF, 16);
  t.copies.push_back({shared, valid ? global : nullptr, t.open_group});
}

void cp_async_commit(fibers::Place place) {
  const Site site{"cp_async_commit", place};
  ++fibers::running(site).open_group;
  fibers::preempt(site);  // others may look at what is under way
}

void cp_async_wait_pending(int pending, const Site& site) {
  Thread& t = fibers::running(site);
  size_t left = 0;
  for (const fibers::AsyncCopy& copy : t.copies) {
    if (copy.group >= t.open_group - pending) {
      t.copies[left++] = copy;
    } else if (copy.global) {
      std::memcpy(copy.shared, copy.global, 16);
    } else {
      std::memset(copy.shared, 0, 16);
    }
  }
  t.copies.resize(left);
}

void ldmatrix_x4(uint32_t (&r)[4], const void* row, fibers::Place place) {
  load_matrices(r, row, false, {"ldmatrix_x4", place});
}
void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, fibers::Place place) {
  load_matrices(r, row, true, {"ldmatrix_x4_trans", place});
}
void ldmatrix_x2(uint32_t (&r)[2], const void* row, fibers::Place place) {
  load_matrices(r, row, false, {"ldmatrix_x2", place});
}
void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, fibers::Place place) {
  load_matrices(r, row, true, {"ldmatrix_x2_trans", place});
}

uint32_t movmatrix_trans(uint32_t a, fibers::Place place) {
  const Site site{"movmatrix_trans", place};
  const Thread& t = fibers::running(site);
  t.warp->brought<uint32_t>(t.lane) = a;
  fibers::meet(Warp::kAll, site, [](Warp& warp) {
    const auto at = [&](int i, int j) {
      return warp.brought<uint32_t>(i * 4 + j / 2) >> (j % 2 * 16) & 0xFFFFu;
    };
    for (int lane = 0; lane < kLanes; ++lane) {
      const int i = lane / 4, j = lane % 4 * 2;
      warp.taken<uint32_t>(lane) = at(j, i) | at(j + 1, i) << 16;
    }
  });
  return t.warp->taken<uint32_t>(t.lane);
}

void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  fibers::Place place) {
  multiply<16>(c, a, b, {"mma_m16n8k16", place});
}
void mma_m16n8k8(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                 fibers::Place place) {
  multiply<8>(c, a, b, {"mma_m16n8k8", place});
}

// Rounding a magnitude up by half a unit carries into the exponent as it should; infinity and NaN
// have no fraction to round.
uint32_t to_tf32(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  return std::isfinite(x) ? (bits + 0x1000u) & 0xFFFFE000u : bits;
}

float exp2_fast(float x) {
  return x < -126 ? 0.0f : std::exp2(x);
}

float reciprocal_fast(float x) {
  return 1.0f / x;
}

}  // namespace kla::simt
