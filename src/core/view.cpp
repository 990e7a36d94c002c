#include "core/view.h"

#include "core/error.h"

namespace kla {

int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
      return 2;
    case DType::u8:
      return 1;
  }
  return 0;
}

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "f64";
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::i64:
      return "i64";
    case DType::i32:
      return "i32";
    case DType::u8:
      return "u8";
  }
  return "?";
}

View::View(void* pointer, DType type, std::initializer_list<int64_t> dims)
    : data(pointer), dtype(type), rank(static_cast<int>(dims.size())) {
  KLA_CHECK(dims.size() >= 1 && dims.size() <= shape.size(), "a view has 1 to 5 dimensions");
  size_t i = 0;
  for (int64_t d : dims) shape[i++] = d;
  stride = cols();
}

int64_t View::rows() const {
  int64_t n = 1;
  for (int i = 0; i + 1 < rank; ++i) n *= dim(i);
  return n;
}

View View::reshape(std::initializer_list<int64_t> dims) const {
  View v(data, dtype, dims);
  KLA_CHECK(v.size() == size(), describe() + " to " + v.describe());
  if (!dense()) {  // a strided view keeps its rows
    KLA_CHECK(v.cols() == cols(), describe() + " is strided");
    v.stride = stride;
  }
  return v;
}

View View::columns(int64_t first, int64_t count) const {
  KLA_CHECK(first >= 0 && count >= 0 && first + count <= cols(), describe());
  View v(nullptr, dtype, {rows(), count});
  if (data) v.data = static_cast<char*>(data) + first * size_of(dtype);
  v.stride = stride;
  return v;
}

View View::row_range(int64_t first, int64_t count) const {
  KLA_CHECK(rank == 2 && first >= 0 && first + count <= rows(), describe());
  View v(nullptr, dtype, {count, cols()});
  if (data) v.data = static_cast<char*>(data) + first * stride * size_of(dtype);
  v.stride = stride;
  return v;
}

View View::elements(int64_t first, int64_t count) const {
  KLA_CHECK(dense() && first >= 0 && count >= 0 && first + count <= size(), describe());
  return View(data ? static_cast<char*>(data) + first * size_of(dtype) : nullptr, dtype, {count});
}

std::string View::describe() const {
  std::string text = std::string(name_of(dtype)) + "[";
  for (int i = 0; i < rank; ++i) text += (i ? "," : "") + std::to_string(dim(i));
  text += "]";
  if (!dense()) text += " stride " + std::to_string(stride);
  return text;
}

void View::check_dtype(DType expected) const {
  KLA_CHECK(dtype == expected, describe() + " used as " + name_of(expected));
}

}  // namespace kla
