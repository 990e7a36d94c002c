#include "tests/simt/wgmma.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace kla::simt {
namespace {

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

float b_at(const WarpgroupProduct& p, int k, int n) {
  const unsigned char* core = p.b + k / 8 * p.k_bytes + n / 8 * p.n_bytes;
  return bf16_at(core + (p.transposed ? k % 8 * 16 + n % 8 * 2 : n % 8 * 16 + k % 8 * 2));
}

void check_operand(const WarpgroupProduct& p, const Site& site) {
  for (int k = 0; k < 2; ++k)
    for (int n = 0; n < 2 * p.blocks; ++n)
      for (int row = 0; row < 8; ++row)
        fibers::check_shared_row(p.b + k * p.k_bytes + n * p.n_bytes + row * 16, site);
}

void compute(Thread& t, const WarpgroupProduct& p, const Site& site) {
  if (t.lane == 0) check_operand(p, site);
  const int column = t.lane % 4 * 2;
  for (int block = 0; block < p.blocks; ++block) {
    WarpgroupBlock& c = lent(t, p.c + 8 * block);
    for (int e = 0; e < 8; ++e) {
      const int n = block * 16 + e / 4 * 8 + column + e % 2;
      float sum = p.add ? c.value[e] : 0;
      for (int k = 0; k < 16; ++k) sum += p.a[e / 2 % 2][k] * b_at(p, k, n);
      c.value[e] = sum;
    }
    --c.products;
  }
}

}  // namespace

void warpgroup_product(float* c, int blocks, bool add, const uint32_t (&a)[4], SharedOperand b,
                       bool transposed, const Site& site) {
  Thread& t = fibers::running(site);
  std::memcpy(t.warp->brought<LeftOperand>(t.lane).a, a, sizeof(a));
  fibers::meet(Warp::kAll, site, take_rows);
  WarpgroupProduct p{.c = c,
                     .blocks = blocks,
                     .add = add,
                     .a = {},
                     .b = b.first,
                     .k_bytes = b.k_bytes,
                     .n_bytes = b.n_bytes,
                     .transposed = transposed,
                     .group = t.open_products};
  std::memcpy(p.a, t.warp->taken<LeftRows>(t.lane).row, sizeof(p.a));
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
