// Matrix and Series: what the reference loops index. A Matrix is rows that lie `stride` elements
// apart, a Series one strided column; both point into views or scratch and own nothing. The three
// products are the only dense algebra of the reference; each adds to its result.
#pragma once

#include <algorithm>

#include "core/arena.h"
#include "core/view.h"

namespace kla::reference {

template <class T>
struct Matrix {
  T* data = nullptr;
  int64_t rows = 0, cols = 0, stride = 0;

  T* operator[](int64_t i) const { return data + i * stride; }
  Matrix corner(int64_t r, int64_t c) const { return {data, r, c, stride}; }
};

template <class T>
struct Series {
  T* data = nullptr;
  int64_t stride = 0;

  T& operator[](int64_t i) const { return data[i * stride]; }
};

// All leading dimensions of a view as rows; an empty view is a matrix without rows.
template <class T>
Matrix<T> matrix(const View& view) {
  if (view.empty()) return {};
  return {view.as<T>(), view.rows(), view.cols(), view.stride};
}

template <class T>
Matrix<T> new_matrix(Arena& arena, int64_t rows, int64_t cols) {
  return {arena.allocate<T>(rows * cols), rows, cols, cols};
}

template <class T>
void fill(const Matrix<T>& m, T value) {
  for (int64_t i = 0; i < m.rows; ++i) std::fill_n(m[i], m.cols, value);
}

template <class T>
void copy(const Matrix<T>& to, const Matrix<T>& from) {
  for (int64_t i = 0; i < from.rows; ++i)
    if (to[i] != from[i]) std::copy_n(from[i], from.cols, to[i]);
}

template <class T>
T dot(const T* x, const T* y, int64_t n) {
  T sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

// y += a x.
template <class T>
void add_scaled(T* y, T a, const T* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}

// out += a b,  a [M,L], b [L,N].
template <class T>
void add_ab(const Matrix<T>& out, const Matrix<T>& a, const Matrix<T>& b) {
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t l = 0; l < a.cols; ++l) add_scaled(out[i], a[i][l], b[l], b.cols);
}

// out += a b^T,  a [M,L], b [N,L].
template <class T>
void add_abt(const Matrix<T>& out, const Matrix<T>& a, const Matrix<T>& b) {
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t j = 0; j < b.rows; ++j) out[i][j] += dot(a[i], b[j], a.cols);
}

// out += a^T b,  a [L,M], b [L,N].
template <class T>
void add_atb(const Matrix<T>& out, const Matrix<T>& a, const Matrix<T>& b) {
  for (int64_t l = 0; l < a.rows; ++l)
    for (int64_t i = 0; i < a.cols; ++i) add_scaled(out[i], a[l][i], b[l], b.cols);
}

}  // namespace kla::reference
