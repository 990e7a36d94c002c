// The gated delta rule token by token, with its sequential adjoint (KERNEL_MATH 1): the definition
// that every chunkwise form is compared with. One head; the state is [V][K] as everywhere.
#pragma once

#include <cmath>

#include "kernels/reference/matrix.h"

namespace kla::reference {

template <class T>
struct RecurrentHead {
  Matrix<T> q, k;                  // [T,K]
  Matrix<T> v;                     // [T,V]
  Series<T> beta;                  // [T]
  Series<T> g;                     // [T] log-decay of each token, not its cumulative sum
  const uint8_t* reset = nullptr;  // [T] or null
  T scale = 1;

  int64_t tokens() const { return q.rows; }
  // The factor of the old state: zero where a document starts.
  T decay(int64_t t) const { return reset && reset[t] ? 0 : std::exp(g[t]); }
};

template <class T>
struct RecurrentGradients {
  Matrix<T> dq, dk, dv;
  Series<T> dbeta, dg;
};

// error = v_t - S k_t, of a state that has decayed already.
template <class T>
void recurrent_error(const RecurrentHead<T>& head, int64_t t, const Matrix<T>& S, T* error) {
  for (int64_t i = 0; i < S.rows; ++i) error[i] = head.v[t][i] - dot(S[i], head.k[t], S.cols);
}

// S <- a S;  S += beta (v - S k) k^T. `error` [V] receives v - S k.
template <class T>
void recurrent_step(const RecurrentHead<T>& head, int64_t t, const Matrix<T>& S, T* error) {
  const T a = head.decay(t);
  for (int64_t i = 0; i < S.rows; ++i)
    for (int64_t j = 0; j < S.cols; ++j) S[i][j] = a == 0 ? 0 : a * S[i][j];
  recurrent_error(head, t, S, error);
  for (int64_t i = 0; i < S.rows; ++i) add_scaled(S[i], head.beta[t] * error[i], head.k[t], S.cols);
}

// o_t = s S_t q_t after every step; S [V,K] goes in as the initial and comes out as the final
// state. `error` is scratch of V.
template <class T>
void recurrent_forward(const RecurrentHead<T>& head, const Matrix<T>& o, const Matrix<T>& S,
                       T* error) {
  for (int64_t t = 0; t < head.tokens(); ++t) {
    recurrent_step(head, t, S, error);
    for (int64_t i = 0; i < S.rows; ++i) o[t][i] = head.scale * dot(S[i], head.q[t], S.cols);
  }
}

// One token of the adjoint: dS is the gradient of the state after it on entry, before it on return.
// `before` is the state before the token; S [V,K], error [V] and dr [V] are scratch.
template <class T>
void recurrent_step_backward(const RecurrentHead<T>& head, const RecurrentGradients<T>& out,
                             int64_t t, const Matrix<T>& before, const T* dout, const Matrix<T>& dS,
                             const Matrix<T>& S, T* error, T* dr) {
  const int64_t V = S.rows, K = S.cols;
  const T a = head.decay(t), beta = head.beta[t], *k = head.k[t];
  copy(S, before);
  recurrent_step(head, t, S, error);
  std::fill_n(out.dq[t], K, T(0));
  std::fill_n(out.dk[t], K, T(0));
  T dbeta = 0, dg = 0;
  for (int64_t i = 0; i < V; ++i) {
    add_scaled(out.dq[t], head.scale * dout[i], S[i], K);
    add_scaled(dS[i], head.scale * dout[i], head.q[t], K);
    const T dx = dot(dS[i], k, K);                     // of the write x = beta error
    add_scaled(out.dk[t], beta * error[i], dS[i], K);  // k x^T
    dbeta += dx * error[i];
    dr[i] = out.dv[t][i] = beta * dx;
    add_scaled(dS[i], -dr[i], k, K);  // now the gradient of the decayed state
    for (int64_t j = 0; j < K; ++j) {
      const T decayed = a == 0 ? 0 : a * before[i][j];
      out.dk[t][j] -= decayed * dr[i];
      dg += dS[i][j] * decayed;
      dS[i][j] = a == 0 ? 0 : a * dS[i][j];
    }
  }
  out.dbeta[t] = dbeta;
  out.dg[t] = dg;
}

// Scratch of recurrent_backward: states [T*V,K] of all tokens, one state and two rows.
template <class T>
struct RecurrentScratch {
  Matrix<T> states;  // [T*V,K]
  Matrix<T> S;       // [V,K]
  T *error, *dr;     // [V]
};

// dS [V,K] goes in as the gradient of the final and comes out as that of the initial state.
template <class T>
void recurrent_backward(const RecurrentHead<T>& head, const RecurrentGradients<T>& out,
                        const Matrix<T>& S_initial, const Matrix<T>& dout, const Matrix<T>& dS,
                        const RecurrentScratch<T>& scratch) {
  const int64_t V = S_initial.rows, K = S_initial.cols;
  auto before = [&](int64_t t) {
    return Matrix<T>{scratch.states[t * V], V, K, scratch.states.stride};
  };
  copy(scratch.S, S_initial);
  for (int64_t t = 0; t < head.tokens(); ++t) {
    copy(before(t), scratch.S);
    recurrent_step(head, t, scratch.S, scratch.error);
  }
  for (int64_t t = head.tokens() - 1; t >= 0; --t)
    recurrent_step_backward(head, out, t, before(t), dout[t], dS, scratch.S, scratch.error,
                            scratch.dr);
}

}  // namespace kla::reference
