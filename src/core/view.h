// View: a pointer with a type and a shape. Arenas own memory, views point into it.
// The last dimension is dense; all leading dimensions together count "rows" that lie `stride`
// elements apart, so a block of columns of a wider matrix is a View too (see columns()).
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

namespace kla {

enum class DType : uint8_t { f64, f32, bf16, i64, i32, u8 };

int64_t size_of(DType dtype);      // bytes
const char* name_of(DType dtype);  // "f32"

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::u8;
};

struct View {
  void* data = nullptr;
  DType dtype = DType::f32;
  int rank = 0;
  std::array<int64_t, 5> shape{};
  int64_t stride = 0;  // elements from one row to the next, >= the last dimension

  View() = default;
  View(void* data, DType dtype, std::initializer_list<int64_t> dims);
  template <class T>
  View(T* values, std::initializer_list<int64_t> dims) : View(values, DTypeOf<T>::value, dims) {}

  int64_t dim(int i) const { return shape[static_cast<size_t>(i)]; }
  int64_t cols() const { return rank == 0 ? 1 : shape[static_cast<size_t>(rank - 1)]; }
  int64_t rows() const;  // product of all leading dimensions
  int64_t size() const { return rows() * cols(); }
  int64_t bytes() const { return size() * size_of(dtype); }
  bool dense() const { return stride == cols(); }
  bool empty() const { return rank == 0; }  // "not given": optional arguments of ops

  // Typed pointer; a wrong type is an internal error. Null during a dry run.
  template <class T>
  T* as() const {
    check_dtype(DTypeOf<T>::value);
    return static_cast<T*>(data);
  }

  View reshape(std::initializer_list<int64_t> dims) const;  // same elements; the rows must allow it
  View columns(int64_t first, int64_t count) const;         // [rows, count], keeps the stride
  View row_range(int64_t first, int64_t count) const;       // rank 2: rows [first, first + count)
  View elements(int64_t first, int64_t count) const;        // [count] of a dense view
  std::string describe() const;                             // "f32[4,128]"

 private:
  void check_dtype(DType expected) const;
};

}  // namespace kla
