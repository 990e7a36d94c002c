#include "model/parameters.h"

#include <algorithm>
#include <cmath>

#include "core/bf16.h"
#include "core/device.h"
#include "core/error.h"
#include "core/philox.h"

namespace kla {
namespace {

constexpr int64_t kLineElements = 16;  // a 64-byte line of f32

double draw(const Initializer& init, const RandomStream& stream, uint64_t i) {
  switch (init.kind) {
    case Initializer::Kind::constant:
      return init.a;
    case Initializer::Kind::uniform:
      return stream.uniform(i, -init.a, init.a);
    case Initializer::Kind::normal:
      return init.a * stream.normal(i);
    case Initializer::Kind::log_decay:  // 1 - u is in (0, 1]: the logarithm is finite
      return std::log(16.0 * (1.0 - stream.uniform(i)));
    case Initializer::Kind::step_bias: {
      const double delta =
          std::max(1e-4, std::exp(stream.uniform(i, std::log(0.001), std::log(0.1))));
      return delta + std::log(-std::expm1(-delta));
    }
  }
  return 0;
}

template <class T>
void fill(const ParameterTable& table, T* flat, uint64_t seed) {
  std::fill_n(flat, table.flat_size(), T{0});
  for (const ParameterSpec& spec : table.specs()) {
    const RandomStream stream(seed, spec.name);
    for (int64_t i = 0; i < spec.count; ++i)
      flat[spec.offset + i] = static_cast<T>(draw(spec.init, stream, static_cast<uint64_t>(i)));
  }
}

}  // namespace

int ParameterTable::add(ParameterSpec spec, bool align) {
  if (align) size_ = (size_ + kLineElements - 1) / kLineElements * kLineElements;
  spec.count = 1;
  for (int64_t dim : spec.shape) spec.count *= dim;
  spec.offset = size_;
  size_ += spec.count;
  specs_.push_back(std::move(spec));
  return static_cast<int>(specs_.size()) - 1;
}

int64_t ParameterTable::count() const {
  int64_t n = 0;
  for (const ParameterSpec& spec : specs_) n += spec.count;
  return n;
}

View ParameterTable::view(View flat, int index) const {
  const ParameterSpec& spec = (*this)[index];
  void* data =
      flat.data ? static_cast<char*>(flat.data) + spec.offset * size_of(flat.dtype) : nullptr;
  const std::vector<int64_t>& s = spec.shape;
  switch (s.size()) {
    case 1:
      return View(data, flat.dtype, {s[0]});
    case 2:
      return View(data, flat.dtype, {s[0], s[1]});
    default:
      return View(data, flat.dtype, {s[0], s[1], s[2]});
  }
}

View ParameterTable::fused(View flat, int first, int last) const {
  int64_t rows = 0;
  for (int i = first; i <= last; ++i) {
    const ParameterSpec& spec = (*this)[i];
    KLA_CHECK(spec.shape.size() == 2 && spec.shape[1] == (*this)[first].shape[1] &&
                  spec.offset == (*this)[first].offset + rows * spec.shape[1],
              spec.name + " does not continue the matrix before it");
    rows += spec.shape[0];
  }
  View view = this->view(flat, first);
  return View(view.data, flat.dtype, {rows, view.cols()});
}

std::vector<AdamwSegment> ParameterTable::segments(bool decay_all) const {
  std::vector<AdamwSegment> segments;
  for (const ParameterSpec& spec : specs_) {
    const AdamwSegment next{spec.offset, spec.count, decay_all || spec.matrix, spec.trained};
    if (!segments.empty()) {  // neighbours treated alike are one segment
      AdamwSegment& last = segments.back();
      if (last.first + last.count == next.first && last.decay == next.decay &&
          last.trained == next.trained) {
        last.count += next.count;
        continue;
      }
    }
    segments.push_back(next);
  }
  return segments;
}

void initialize(const ParameterTable& table, View flat, uint64_t seed) {
  if (flat.dtype == DType::f64) {
    fill(table, flat.as<double>(), seed);
  } else {
    fill(table, flat.as<float>(), seed);
  }
}

void initialize(const Context& context, const Weights& weights, uint64_t seed) {
  HostMirror mirror(context, weights.master);
  initialize(*weights.table, mirror.host(), seed);
  mirror.push();
  refresh_compute_copy(context, weights);
}

void refresh_compute_copy(const Context& context, const Weights& weights) {
  if (weights.compute.data == weights.master.data) return;
  KLA_CHECK(weights.compute.dtype == DType::bf16, weights.compute.describe());
  const std::vector<float> master = downloaded<float>(context, weights.master);
  const std::vector<bf16> copy(master.begin(), master.end());
  upload(context, weights.compute, copy.data());
}

}  // namespace kla
