#include "eval/mixer_tap.h"

#include <algorithm>
#include <utility>

#include "core/device.h"
#include "core/error.h"

namespace kla {

MixerTap::MixerTap(Context& context, int64_t layers, Visit visit)
    : context_(context), before_(context.observer), layers_(layers), visit_(std::move(visit)) {
  context_.observer = this;
}

MixerTap::~MixerTap() {
  context_.observer = before_;
}

void MixerTap::begin(const OpBase& op, const void* args) {
  if (before_) before_->begin(op, args);
  if (visiting_ || depth_++ > 0) return;
  if (&op == &ops::mixer_prep_forward) prep_ = *static_cast<const MixerPrepForward*>(args);
  scanned_ = &op == &ops::delta_scan_forward;
  if (scanned_) scan_ = *static_cast<const DeltaScanForward*>(args);
}

void MixerTap::end() {
  if (before_) before_->end();
  if (visiting_ || --depth_ > 0 || !std::exchange(scanned_, false)) return;
  const int64_t layer = next_++;
  if (layer >= layers_) return;
  visiting_ = true;
  visit_(layer, prep_, scan_);
  visiting_ = false;
}

std::vector<double> host_values(const Context& context, const View& view) {
  if (view.empty() || view.size() == 0) return {};
  const int64_t rows = view.rows(), cols = view.cols();
  const View span(view.data, view.dtype, {(rows - 1) * view.stride + cols});
  std::vector<double> values = downloaded_as_double(context, span);
  if (view.dense()) return values;
  for (int64_t row = 1; row < rows; ++row)  // to the front: source and target may overlap
    std::copy_n(values.begin() + row * view.stride, cols, values.begin() + row * cols);
  values.resize(static_cast<size_t>(rows * cols));
  return values;
}

View sequence_of(const View& view, int64_t b) {
  KLA_CHECK(view.rank >= 2, view.describe());
  View one = view;
  one.rank = view.rank - 1;
  std::copy(view.shape.begin() + 1, view.shape.end(), one.shape.begin());
  one.shape.back() = 0;
  const int64_t bytes = one.rows() * view.stride * size_of(view.dtype);
  if (view.data) one.data = static_cast<std::byte*>(view.data) + b * bytes;
  return one;
}

}  // namespace kla
