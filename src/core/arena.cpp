#include "core/arena.h"

#include <algorithm>

#include "core/device.h"
#include "core/error.h"
#include "core/memory.h"

namespace kla {
namespace {

int64_t round_up(int64_t bytes) {
  return (bytes + Arena::kAlignment - 1) / Arena::kAlignment * Arena::kAlignment;
}

}  // namespace

Arena::Arena(std::string name, int64_t capacity, DeviceServices* services)
    : name_(std::move(name)),
      services_(services ? services : &services_of(Device::cpu)),
      capacity_(round_up(std::max<int64_t>(capacity, kAlignment))) {
  base_ = static_cast<std::byte*>(services_->allocate(capacity_));
  if (!base_) {
    throw Error(Exit::io,
                "cannot allocate " + format_bytes(capacity_) + " for " + name_ + ": " +
                    format_bytes(services_->free_bytes()) + " are free",
                "reduce train.micro_batch_size or data.seq_len, or set train.recompute: block");
  }
}

Arena::~Arena() {
  if (base_) services_->release(base_);
}

View Arena::allocate(DType dtype, std::initializer_list<int64_t> dims) {
  View view(nullptr, dtype, dims);
  const int64_t bytes = round_up(view.bytes());
  if (base_) {
    KLA_CHECK(used_ + bytes <= capacity_,
              "arena '" + name_ + "' is too small for " + view.describe() + ": the plan missed it");
    view.data = base_ + used_;
    if (poison_ && bytes > 0) services_->fill(view.data, 0xFF, bytes);
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
