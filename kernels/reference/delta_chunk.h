// One chunk of one head of the gated delta rule: its slices of the tensors, its decay factors and
// the quantities that forward and backward share. Notation of KERNEL_MATH 2-6 with the state stored
// transposed, [V][K]. L <= C is the number of tokens of the chunk; nothing is padded.
#pragma once

#include <cmath>

#include "core/context.h"
#include "kernels/ops.h"
#include "kernels/reference/matrix.h"

namespace kla::reference {

struct DeltaShape {
  int64_t B, T, H, K, V, C, NC;

  DeltaShape(const DeltaInputs& in, int64_t value_dim)
      : B(in.q.dim(0)),
        T(in.q.dim(1)),
        H(in.q.dim(2)),
        K(in.q.dim(3)),
        V(value_dim),
        C(in.T_zero.dim(4)),
        NC(in.T_zero.dim(1)) {}
};

struct ChunkPlace {
  int64_t b, n, h;   // sequence, chunk, head
  int64_t first, L;  // first token and number of tokens
};

inline ChunkPlace chunk_place(const DeltaShape& s, int64_t b, int64_t n, int64_t h) {
  return {b, n, h, n * s.C, std::min(s.C, s.T - n * s.C)};
}

// The chunk's rows of a [B,T,H,*] view.
template <class T>
Matrix<T> chunk_rows(const View& view, const ChunkPlace& p) {
  const int64_t steps = view.dim(1), H = view.dim(2), row = (p.b * steps + p.first) * H + p.h;
  return {view.as<T>() + row * view.stride, p.L, view.cols(), H * view.stride};
}

// The chunk's entries of a [B,T,H] view.
template <class T>
Series<T> chunk_series(const View& view, const ChunkPlace& p) {
  return {view.as<T>() + (p.b * view.dim(1) + p.first) * view.stride + p.h, view.stride};
}

// The chunk's matrix of a [B,NC,H,*,*] view.
template <class T>
Matrix<T> chunk_matrix(const View& view, const ChunkPlace& p) {
  const int64_t index = (p.b * view.dim(1) + p.n) * view.dim(2) + p.h;
  return {view.as<T>() + index * view.dim(3) * view.stride, view.dim(3), view.dim(4), view.stride};
}

// The state of sequence b and head h in a [B,H,V,K] view.
template <class T>
Matrix<T> carried_state(const View& view, int64_t b, int64_t h) {
  const int64_t index = b * view.dim(1) + h;
  return {view.as<T>() + index * view.dim(2) * view.stride, view.dim(2), view.dim(3), view.stride};
}

// The gate inside a chunk. Every exponent is a difference of G that is <= 0; e^{-G} is never
// formed. A factor that would reach across a reset is zero by selection.
template <class T>
struct ChunkDecay {
  Matrix<T> Gam;      // [L,L] e^{G_i - G_j} for j <= i, else 0
  T* G;               // [L] sum of g since the start of the chunk or document
  T *D, *E;           // [L] e^{G_i} of the entering state, e^{G_L - G_j} of a write that leaves
  T gamma;            // e^{G_L}: entering to leaving state
  int64_t* document;  // [L] resets at or before the token

  ChunkDecay(Arena& arena, int64_t C)
      : Gam(new_matrix<T>(arena, C, C)),
        G(arena.allocate<T>(C)),
        D(arena.allocate<T>(C)),
        E(arena.allocate<T>(C)),
        gamma(0),
        document(arena.allocate<int64_t>(C)) {}

  void load(const Series<T>& g, const uint8_t* reset, int64_t L) {
    auto decay = [](bool same_document, T exponent) {
      return same_document ? std::exp(std::min(exponent, T(0))) : 0;
    };
    int64_t resets = 0;
    for (int64_t i = 0; i < L; ++i) {
      document[i] = resets += reset && reset[i];
      G[i] = g[i] + (i > 0 && document[i] == document[i - 1] ? G[i - 1] : 0);
    }
    Gam = {Gam.data, L, L, Gam.stride};
    for (int64_t i = 0; i < L; ++i) {
      for (int64_t j = 0; j < L; ++j)
        Gam[i][j] = j <= i ? decay(document[i] == document[j], G[i] - G[j]) : 0;
      D[i] = decay(document[i] == 0, G[i]);
      E[i] = decay(document[i] == resets, G[L - 1] - G[i]);
    }
    gamma = decay(resets == 0, G[L - 1]);
  }
};

// Slices and shared quantities of one chunk; load() moves it from chunk to chunk.
template <class T>
struct Chunk {
  int64_t L = 0;
  T scale;
  Matrix<T> q, k, v;  // slices; v only where the op reads it
  Series<T> beta;
  ChunkDecay<T> decay;
  Matrix<T> Tg;           // [L,L] gated inverse Gam o T_zero
  Matrix<T> P;            // [L,L] s Gam o (q k^T)
  Matrix<T> R, Y, Yb, X;  // [L,V] K S, V - D R, beta o Y, Tg Yb

  Chunk(Arena& arena, const DeltaShape& s, double read_scale)
      : scale(static_cast<T>(read_scale)),
        decay(arena, s.C),
        Tg(new_matrix<T>(arena, s.C, s.C)),
        P(new_matrix<T>(arena, s.C, s.C)),
        R(new_matrix<T>(arena, s.C, s.V)),
        Y(new_matrix<T>(arena, s.C, s.V)),
        Yb(new_matrix<T>(arena, s.C, s.V)),
        X(new_matrix<T>(arena, s.C, s.V)) {}

  // What does not depend on the state or the values.
  void load(const DeltaInputs& in, const ChunkPlace& p) {
    L = p.L;
    q = chunk_rows<T>(in.q, p);
    k = chunk_rows<T>(in.k, p);
    beta = chunk_series<T>(in.beta, p);
    const uint8_t* reset =
        in.reset.empty() ? nullptr : in.reset.as<uint8_t>() + p.b * in.q.dim(1) + p.first;
    decay.load(chunk_series<T>(in.g, p), reset, L);
    const Matrix<T> T_zero = chunk_matrix<T>(in.T_zero, p);
    Tg = Tg.corner(L, L);
    P = P.corner(L, L);
    for (int64_t i = 0; i < L; ++i) {
      for (int64_t j = 0; j < L; ++j) {
        Tg[i][j] = decay.Gam[i][j] * T_zero[i][j];
        P[i][j] = scale * decay.Gam[i][j] * dot(q[i], k[j], q.cols);
      }
    }
  }

  // The writes X of the chunk, given the state S entering it.
  void solve(const Matrix<T>& values, const Matrix<T>& S) {
    v = values;
    for (Matrix<T>* m : {&R, &Y, &Yb, &X}) *m = m->corner(L, v.cols);
    fill(R, T(0));
    add_abt(R, k, S);
    for (int64_t i = 0; i < L; ++i) {
      for (int64_t j = 0; j < v.cols; ++j) {
        Y[i][j] = v[i][j] - decay.D[i] * R[i][j];
        Yb[i][j] = beta[i] * Y[i][j];
      }
    }
    fill(X, T(0));
    add_ab(X, Tg, Yb);
  }
};

}  // namespace kla::reference
