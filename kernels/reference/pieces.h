// The small functions the ops are composed of, each followed by its derivative. Vectors are pointer
// and length; r is a reciprocal norm that the forward returns and the backward takes. Backward
// functions overwrite gradients of vectors they are named after and add to those of parameters.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/ops.h"
#include "kernels/reference/matrix.h"

namespace kla::reference {

// ---- Scalars -----------------------------------------------------------------------------------

template <class T>
T sigmoid_forward(T x) {
  if (x >= 0) return 1 / (1 + std::exp(-x));
  const T e = std::exp(x);
  return e / (1 + e);
}
// In terms of the value y, times dy.
template <class T>
T sigmoid_backward(T y, T dy) {
  return dy * y * (1 - y);
}

template <class T>
T silu_forward(T x) {
  return x * sigmoid_forward(x);
}
template <class T>
T silu_backward(T x, T dy) {
  const T s = sigmoid_forward(x);
  return dy * s * (1 + x * (1 - s));
}

// ln(1 + e^x), without overflow.
template <class T>
T softplus_forward(T x) {
  return std::max(x, T(0)) + std::log1p(std::exp(-std::abs(x)));
}
template <class T>
T softplus_backward(T x, T dy) {
  return dy * sigmoid_forward(x);
}

// ---- Short convolution: c = sum_j w_j x_j over the taps x_0..x_3; x_3 is the current token. -----

template <class T>
T short_conv_forward(const T* w, const T* x) {
  return dot(w, x, kConvWidth);
}
// dw += dc x,  dx += dc w.
template <class T>
void short_conv_backward(T* dw, T* dx, const T* w, const T* x, T dc) {
  add_scaled(dw, dc, x, kConvWidth);
  add_scaled(dx, dc, w, kConvWidth);
}

// ---- Norms and maps of one row -----------------------------------------------------------------

// y = x r,  r = (|x|^2 + eps)^-1/2; returns r.
template <class T>
T unit_forward(T* y, const T* x, int64_t n, T eps) {
  const T r = 1 / std::sqrt(dot(x, x, n) + eps);
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * r;
  return r;
}
// dx = r (dy - y (y.dy)): exact, eps included.
template <class T>
void unit_backward(T* dx, const T* dy, const T* y, int64_t n, T r) {
  const T along = dot(y, dy, n);
  for (int64_t i = 0; i < n; ++i) dx[i] = r * (dy[i] - y[i] * along);
}

// y = softmax(x).
template <class T>
void softmax_forward(T* y, const T* x, int64_t n) {
  const T top = *std::max_element(x, x + n);
  T sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += y[i] = std::exp(x[i] - top);
  for (int64_t i = 0; i < n; ++i) y[i] /= sum;
}
template <class T>
void softmax_backward(T* dx, const T* dy, const T* y, int64_t n) {
  const T along = dot(y, dy, n);
  for (int64_t i = 0; i < n; ++i) dx[i] = y[i] * (dy[i] - along);
}

// v_hat = v (n2 + eps)^-1/2: the value in units of a key of squared norm n2.
template <class T>
void over_key_norm_forward(T* v_hat, const T* v, int64_t n, T n2, T eps) {
  const T r = 1 / std::sqrt(n2 + eps);
  for (int64_t i = 0; i < n; ++i) v_hat[i] = v[i] * r;
}
// Returns the derivative by n2.
template <class T>
T over_key_norm_backward(T* dv, const T* dv_hat, const T* v_hat, int64_t n, T n2, T eps) {
  const T r = 1 / std::sqrt(n2 + eps);
  for (int64_t i = 0; i < n; ++i) dv[i] = dv_hat[i] * r;
  return dot(v_hat, dv_hat, n) * r * r / -2;
}

// y = w o x r,  r = (mean(x^2) + eps)^-1/2; returns r.
template <class T>
T rms_norm_row_forward(T* y, const T* x, const T* w, int64_t n, T eps) {
  const T r = 1 / std::sqrt(dot(x, x, n) / static_cast<T>(n) + eps);
  for (int64_t i = 0; i < n; ++i) y[i] = w[i] * x[i] * r;
  return r;
}
// dx = residual + r (h - xhat mean(h xhat)),  h = dy o w,  xhat = x r;  dw += dy xhat.
// `residual` may be null or dx itself.
template <class T>
void rms_norm_row_backward(T* dx, T* dw, const T* residual, const T* dy, const T* x, const T* w,
                           int64_t n, T r) {
  T mean = 0;
  for (int64_t i = 0; i < n; ++i) mean += dy[i] * w[i] * x[i] * r / static_cast<T>(n);
  for (int64_t i = 0; i < n; ++i) {
    const T xhat = x[i] * r;
    dw[i] += dy[i] * xhat;
    dx[i] = (residual ? residual[i] : 0) + r * (dy[i] * w[i] - xhat * mean);
  }
}

// ---- Decay gates: the log-decay g of one head and token
// ------------------------------------------

// g = -e^{a_log} softplus(z).
template <class T>
T mamba_gate_forward(T z, T a_log) {
  return -std::exp(a_log) * softplus_forward(z);
}
// Returns dz; da_log += dg g.
template <class T>
T mamba_gate_backward(T* da_log, T z, T a_log, T dg) {
  *da_log += dg * mamba_gate_forward(z, a_log);
  return softplus_backward(z, -std::exp(a_log) * dg);
}

// g = ln(sigmoid(z)) / 16.
template <class T>
T logsigmoid_gate_forward(T z) {
  return -softplus_forward(-z) / 16;
}
template <class T>
T logsigmoid_gate_backward(T z, T dg) {
  return softplus_backward(-z, dg) / 16;
}

// g = ln clamp(1 - eta, 1e-6, 1).
inline constexpr double kLeastKeep = 1e-6;
template <class T>
T single_gate_forward(T eta) {
  return std::log(std::clamp(1 - eta, T(kLeastKeep), T(1)));
}
// Returns deta.
template <class T>
T single_gate_backward(T eta, T dg) {
  const T keep = 1 - eta;
  return keep >= T(kLeastKeep) ? -dg / keep : 0;
}

// ---- Inverse of a unit lower triangular matrix: out = (I + A)^-1, A strictly lower, [n,n]
// --------

// Row i by forward substitution: T_i = e_i - sum_{l<i} A_il T_l. Never a power series: the powers
// of A grow before they cancel.
template <class T>
void unit_lower_inverse_forward(const Matrix<T>& out, const Matrix<T>& A) {
  fill(out, T(0));
  for (int64_t i = 0; i < A.rows; ++i) {
    out[i][i] = 1;
    for (int64_t l = 0; l < i; ++l) add_scaled(out[i], -A[i][l], out[l], i);
  }
}
// dA = -stril(out^T dout out^T). The delta rule does not use it: there X = out Yb is at hand, and
// dA = -stril((out^T dX) X^T) is the same in one product (kernels/README.md).
template <class T>
void unit_lower_inverse_backward(const Matrix<T>& dA, const Matrix<T>& dout, const Matrix<T>& out,
                                 const Matrix<T>& scratch) {
  fill(scratch, T(0));
  fill(dA, T(0));
  add_atb(scratch, out, dout);
  add_abt(dA, scratch, out);
  for (int64_t i = 0; i < dA.rows; ++i)
    for (int64_t j = 0; j < dA.cols; ++j) dA[i][j] = j < i ? -dA[i][j] : 0;
}

// ---- Cross entropy of one row of logits
// ----------------------------------------------------------

// logsumexp(z) - z[target].
template <class T>
T cross_entropy_forward(const T* z, int64_t n, int64_t target) {
  const T top = *std::max_element(z, z + n);
  T sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(z[i] - top);
  return std::log(sum) + top - z[target];
}
// dz = dloss (softmax(z) - onehot(target)); dz may be z.
template <class T>
void cross_entropy_backward(T* dz, const T* z, int64_t n, int64_t target, T dloss) {
  softmax_forward(dz, z, n);
  dz[target] -= 1;
  for (int64_t i = 0; i < n; ++i) dz[i] *= dloss;
}

}  // namespace kla::reference
