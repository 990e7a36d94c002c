#include "tests/simt/wgmma.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace kla::simt {
namespace {

using fibers::CoreMatrix;
using fibers::Site;
using fibers::Thread;
using fibers::Warp;
using fibers::WarpgroupBlock;
using fibers::WarpgroupProduct;

struct LeftOperand {
  uint32_t a[4];
};
struct LeftRows {  // g and g + 8 of the 16x16 left operand
  float row[2][16];
};

float bf16_at(const unsigned char* from) {
  uint16_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

// Each lane needs two whole rows of what the warp brings.
void take_rows(Warp& warp) {
  float a[16][16];
  for (int lane = 0; lane < Warp::kLanes; ++lane)
    for (int r = 0; r < 4; ++r) {
      const uint32_t pair = warp.brought<LeftOperand>(lane).a[r];
      float* to = &a[lane / 4 + r % 2 * 8][lane % 4 * 2 + r / 2 * 8];
      to[0] = std::bit_cast<float>(pair << 16);
      to[1] = std::bit_cast<float>(pair & 0xFFFF0000u);
    }
  for (int lane = 0; lane < Warp::kLanes; ++lane)
    for (int half = 0; half < 2; ++half)
      std::memcpy(warp.taken<LeftRows>(lane).row[half], a[lane / 4 + 8 * half], sizeof(a[0]));
}

// The block's accumulators are the products' from its first product on.
WarpgroupBlock& lent(Thread& t, float* c) {
  for (WarpgroupBlock& block : t.blocks)
    if (block.c == c) return block;
  WarpgroupBlock block{.c = c, .products = 0, .value = {}};
  std::copy_n(c, 8, block.value);
  std::fill_n(c, 8, std::numeric_limits<float>::quiet_NaN());
  return t.blocks.emplace_back(block);
}

float at(const CoreMatrix& m, int k, int n) {
  const unsigned char* core = m.first + k / 8 * m.k_bytes + n / 8 * m.n_bytes;
  return bf16_at(core + (m.transposed ? k % 8 * 16 + n % 8 * 2 : n % 8 * 16 + k % 8 * 2));
}

// Every lane looks before it reads: the ends of each core, between which nothing else fits.
void check(const CoreMatrix& m, int columns, const Site& site) {
  for (int k = 0; k < 16; k += 8)
    for (int n = 0; n < columns; n += 8)
      for (const int row : {0, 7})
        fibers::check_shared_row(m.first + k / 8 * m.k_bytes + n / 8 * m.n_bytes + row * 16, site);
}

void compute(Thread& t, WarpgroupProduct p, const Site& site) {
  check(p.b, 16 * p.blocks, site);
  if (p.shared_a.first) check(p.shared_a, 64, site);
  if (p.shared_a.first)
    for (int half = 0; half < 2; ++half)
      for (int k = 0; k < 16; ++k)
        p.a[half][k] =
            at(p.shared_a, k, static_cast<int>(t.index.x) / 32 % 4 * 16 + t.lane / 4 + 8 * half);
  for (int block = 0; block < p.blocks; ++block) {
    WarpgroupBlock& c = lent(t, p.c + 8 * block);
    for (int e = 0; e < 8; ++e) {
      const int n = block * 16 + e / 4 * 8 + t.lane % 4 * 2 + e % 2;
      float sum = p.add ? c.value[e] : 0;
      for (int k = 0; k < 16; ++k) sum += p.a[e / 2 % 2][k] * at(p.b, k, n);
      c.value[e] = sum;
    }
    --c.products;
  }
}

}  // namespace

void warpgroup_product(float* c, int blocks, bool add, const uint32_t (*a)[4],
                       const CoreMatrix& shared_a, const CoreMatrix& b, const Site& site) {
  Thread& t = fibers::running(site);
  WarpgroupProduct p{.c = c,
                     .blocks = blocks,
                     .add = add,
                     .a = {},
                     .shared_a = shared_a,
                     .b = b,
                     .group = t.open_products};
  if (a) {
    std::memcpy(t.warp->brought<LeftOperand>(t.lane).a, *a, sizeof(*a));
    fibers::meet(Warp::kAll, site, take_rows);
    std::memcpy(p.a, t.warp->taken<LeftRows>(t.lane).row, sizeof(p.a));
  }
  t.products.push_back(p);
  for (int block = 0; block < blocks; ++block) ++lent(t, c + 8 * block).products;
}

void warpgroup_commit(fibers::Place place) {
  const Site site{"warpgroup_commit", place};
  ++fibers::running(site).open_products;
  fibers::preempt(site);  // others may look at what is under way
}

void warpgroup_wait_pending(int pending, const Site& site) {
  Thread& t = fibers::running(site);
  const auto under_way = [&](const WarpgroupProduct& p) {
    return p.group >= t.open_products - pending;
  };
  const auto left = std::find_if(t.products.begin(), t.products.end(), under_way);
  std::for_each(t.products.begin(), left, [&](const WarpgroupProduct& p) { compute(t, p, site); });
  t.products.erase(t.products.begin(), left);
  std::erase_if(t.blocks, [](const WarpgroupBlock& block) {
    if (block.products != 0) return false;
    std::copy_n(block.value, 8, block.c);
    return true;
  });
}

}  // namespace kla::simt
