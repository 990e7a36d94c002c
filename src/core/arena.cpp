#include "core/arena.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "core/error.h"

namespace kla {
namespace {

int64_t round_up(int64_t bytes) {
  return (bytes + Arena::kAlignment - 1) / Arena::kAlignment * Arena::kAlignment;
}

}  // namespace

Arena::Arena(std::string name, int64_t capacity)
    : name_(std::move(name)), capacity_(round_up(std::max<int64_t>(capacity, kAlignment))) {
  base_ = static_cast<std::byte*>(
      std::aligned_alloc(static_cast<size_t>(kAlignment), static_cast<size_t>(capacity_)));
  if (!base_) {
    throw Error(Exit::io,
                "cannot allocate " + std::to_string(capacity_ >> 20) + " MiB for " + name_,
                "reduce train.micro_batch_size or data.seq_len, or set train.recompute: block");
  }
}

Arena::~Arena() {
  std::free(base_);
}

View Arena::allocate(DType dtype, std::initializer_list<int64_t> dims) {
  View view(nullptr, dtype, dims);
  const int64_t bytes = round_up(view.bytes());
  if (base_) {
    KLA_CHECK(used_ + bytes <= capacity_,
              "arena '" + name_ + "' is too small for " + view.describe() + ": the plan missed it");
    view.data = base_ + used_;
    if (poison_) std::memset(view.data, 0xFF, static_cast<size_t>(bytes));
  }
  used_ += bytes;
  high_water_ = std::max(high_water_, used_);
  return view;
}

void Arena::release(int64_t mark) {
  KLA_CHECK(mark >= 0 && mark <= used_, name_);
  used_ = mark;
}

}  // namespace kla
