// Reference gated delta rule, chunkwise (KERNEL_MATH 4a, 6, 7.1) and one token at a time. Chunks of
// one head follow each other; the chunk length is that of T_zero.
#include "kernels/ops.h"
#include "kernels/reference/delta_chunk.h"
#include "kernels/reference/recurrent.h"

namespace kla::reference {
namespace {

// x times a decay factor. A zero factor selects zero, so that nothing of an earlier document
// passes, not even the sign or the NaN of what it multiplies.
template <class T>
T decayed(T factor, T x) {
  return factor == 0 ? 0 : factor * x;
}

// out[i] = s d[i] in[i], row by row.
template <class T>
void decay_rows(const Matrix<T>& out, T s, const T* d, const Matrix<T>& in) {
  for (int64_t i = 0; i < in.rows; ++i)
    for (int64_t j = 0; j < in.cols; ++j) out[i][j] = decayed(s * d[i], in[i][j]);
}

template <class T>
void decay_state(const Matrix<T>& S, T gamma) {
  for (int64_t i = 0; i < S.rows; ++i)
    for (int64_t j = 0; j < S.cols; ++j) S[i][j] = decayed(gamma, S[i][j]);
}

// The carried state or gradient of (b, h); an empty view stands for zeros.
template <class T>
void load_state(const Matrix<T>& S, const View& carried, int64_t b, int64_t h) {
  if (carried.empty()) {
    fill(S, T(0));
  } else {
    copy(S, carried_state<T>(carried, b, h));
  }
}

// ---- Forward -----------------------------------------------------------------------------------

// O = s D (Q S^T) + P X, then S <- gamma S + (E X)^T K. Overwrites R with Q S^T and Y with E X.
template <class T>
void chunk_forward(Chunk<T>& c, const Matrix<T>& o, const Matrix<T>& S) {
  const Matrix<T> QS = c.R, EX = c.Y;
  fill(QS, T(0));
  add_abt(QS, c.q, S);
  decay_rows(o, c.scale, c.decay.D, QS);
  add_ab(o, c.P, c.X);
  decay_rows(EX, T(1), c.decay.E, c.X);
  decay_state(S, c.decay.gamma);
  add_atb(S, EX, c.k);
}

template <class T>
void delta_scan_forward(Context& context, const DeltaScanForward& a) {
  const DeltaShape s(a.in, a.in.v.dim(3));
  ArenaScope scope(*context.scratch);
  Chunk<T> chunk(*context.scratch, s, a.in.scale);
  const Matrix<T> S = new_matrix<T>(*context.scratch, s.V, s.K);
  context.parallel(1, [&](int64_t, int) {
    for (int64_t b = 0; b < s.B; ++b) {
      for (int64_t h = 0; h < s.H; ++h) {
        load_state(S, a.S_initial, b, h);
        for (int64_t n = 0; n < s.NC; ++n) {
          const ChunkPlace place = chunk_place(s, b, n, h);
          if (!a.S_enter.empty()) copy(chunk_matrix<T>(a.S_enter, place), S);
          chunk.load(a.in, place);
          chunk.solve(chunk_rows<T>(a.in.v, place), S);
          chunk_forward(chunk, chunk_rows<T>(a.o, place), S);
        }
        if (!a.S_final.empty()) copy(carried_state<T>(a.S_final, b, h), S);
      }
    }
  });
}

// ---- Backward ----------------------------------------------------------------------------------

// Gradients of the quantities of one chunk.
template <class T>
struct ChunkGradients {
  Matrix<T> dX, N, dR;  // [L,V]; N is the gradient of Yb
  Matrix<T> B;          // [L,L] of the raw products q k^T
  Matrix<T> dA, Z;      // [L,L] of the gate-free A; summands of dg
  Matrix<T> dAK, DdO;   // [L,K] dA K, [L,V] s D dO
  Matrix<T> part;       // [L,K] one summand of dQ or dK
  T *cq, *cr, *ck;      // [L] summands of dg (KERNEL_MATH 7)

  ChunkGradients(Arena& arena, const DeltaShape& s)
      : dX(new_matrix<T>(arena, s.C, s.V)),
        N(new_matrix<T>(arena, s.C, s.V)),
        dR(new_matrix<T>(arena, s.C, s.V)),
        B(new_matrix<T>(arena, s.C, s.C)),
        dA(new_matrix<T>(arena, s.C, s.C)),
        Z(new_matrix<T>(arena, s.C, s.C)),
        dAK(new_matrix<T>(arena, s.C, s.K)),
        DdO(new_matrix<T>(arena, s.C, s.V)),
        part(new_matrix<T>(arena, s.C, s.K)),
        cq(arena.allocate<T>(s.C)),
        cr(arena.allocate<T>(s.C)),
        ck(arena.allocate<T>(s.C)) {}

  void resize(int64_t L) {
    for (Matrix<T>* m : {&dX, &N, &dR, &dAK, &DdO, &part}) m->rows = L;
    for (Matrix<T>* m : {&B, &dA, &Z}) *m = m->corner(L, L);
  }
};

// Equations (1), (2), (4): dX = P^T dO + E K dS^T, N = Tg^T dX, dR = -D beta N, with dS the
// gradient of the state leaving the chunk.
template <class T>
void write_gradients(const Chunk<T>& c, ChunkGradients<T>& d, const Matrix<T>& dout,
                     const Matrix<T>& dS) {
  d.resize(c.L);
  fill(d.dR, T(0));
  add_abt(d.dR, c.k, dS);  // K dS^T, until dR proper
  decay_rows(d.dX, T(1), c.decay.E, d.dR);
  add_atb(d.dX, c.P, dout);
  fill(d.N, T(0));
  add_atb(d.N, c.Tg, d.dX);
  for (int64_t i = 0; i < c.L; ++i)
    for (int64_t j = 0; j < d.N.cols; ++j)
      d.dR[i][j] = -decayed(c.decay.D[i], c.beta[i] * d.N[i][j]);
}

// Equation (10): dS <- gamma dS + s (D dO)^T Q + dR^T K, from the leaving to the entering state.
template <class T>
void state_gradient(const Chunk<T>& c, ChunkGradients<T>& d, const Matrix<T>& dout,
                    const Matrix<T>& dS) {
  decay_rows(d.DdO, c.scale, c.decay.D, dout);
  decay_state(dS, c.decay.gamma);
  add_atb(dS, d.DdO, c.q);
  add_atb(dS, d.dR, c.k);
}

template <class T>
void delta_reverse_scan(Context& context, const DeltaReverseScan& a) {
  const DeltaShape s(a.in, a.dout.dim(3));
  ArenaScope scope(*context.scratch);
  Chunk<T> chunk(*context.scratch, s, a.in.scale);
  ChunkGradients<T> gradients(*context.scratch, s);
  const Matrix<T> dS = new_matrix<T>(*context.scratch, s.V, s.K);
  context.parallel(1, [&](int64_t, int) {
    for (int64_t b = 0; b < s.B; ++b) {
      for (int64_t h = 0; h < s.H; ++h) {
        load_state(dS, a.dS_final, b, h);
        for (int64_t n = s.NC - 1; n >= 0; --n) {
          const ChunkPlace place = chunk_place(s, b, n, h);
          const Matrix<T> dout = chunk_rows<T>(a.dout, place);
          copy(chunk_matrix<T>(a.dS_leave, place), dS);
          chunk.load(a.in, place);
          write_gradients(chunk, gradients, dout, dS);
          state_gradient(chunk, gradients, dout, dS);
        }
        if (!a.dS_initial.empty()) copy(carried_state<T>(a.dS_initial, b, h), dS);
      }
    }
  });
}

// Equations (5), (6): gradients of P, of the raw products q k^T and of the gate-free A.
// -stril(N X^T) is the derivative of the linear solve (I + A) X = Yb. Z is what both leave for dg.
template <class T>
void square_gradients(const Chunk<T>& c, ChunkGradients<T>& d, const Matrix<T>& dout) {
  const int64_t V = c.X.cols, K = c.k.cols;
  for (int64_t i = 0; i < c.L; ++i) {
    for (int64_t j = 0; j < c.L; ++j) {
      const T Gam = c.decay.Gam[i][j];
      const T dP = j <= i ? dot(dout[i], c.X[j], V) : 0;
      d.B[i][j] = c.scale * Gam * dP;
      d.dA[i][j] = j < i ? -Gam * dot(d.N[i], c.X[j], V) : 0;
      d.Z[i][j] = j < i ? dP * c.P[i][j] + d.dA[i][j] * c.beta[i] * dot(c.k[i], c.k[j], K) : 0;
    }
  }
  fill(d.dAK, T(0));
  add_ab(d.dAK, d.dA, c.k);
}

// Equation (7): dQ = s D (dO S) + B K. Leaves cq_i = q_i . (s D dO S)_i.
template <class T>
void query_gradient(const Chunk<T>& c, ChunkGradients<T>& d, const Matrix<T>& dout,
                    const Matrix<T>& S, const Matrix<T>& dq) {
  decay_rows(d.DdO, c.scale, c.decay.D, dout);
  fill(dq, T(0));
  add_ab(dq, d.DdO, S);
  for (int64_t i = 0; i < c.L; ++i) d.cq[i] = dot(c.q[i], dq[i], dq.cols);
  add_ab(dq, d.B, c.k);
}

// Equation (8): dK = E (X dS) + dR S + B^T Q + beta o (dA K) + dA^T (beta o K).
// Leaves ck_j = k_j . (E X dS)_j.
template <class T>
void key_gradient(const Chunk<T>& c, ChunkGradients<T>& d, const Matrix<T>& S, const Matrix<T>& dS,
                  const Matrix<T>& dk) {
  const int64_t K = dk.cols;
  fill(d.part, T(0));
  add_ab(d.part, c.X, dS);
  decay_rows(dk, T(1), c.decay.E, d.part);
  for (int64_t j = 0; j < c.L; ++j) d.ck[j] = dot(c.k[j], dk[j], K);
  add_ab(dk, d.dR, S);
  add_atb(dk, d.B, c.q);
  for (int64_t i = 0; i < c.L; ++i) {
    add_scaled(dk[i], c.beta[i], d.dAK[i], K);
    for (int64_t j = 0; j < K; ++j) d.part[i][j] = c.beta[i] * c.k[i][j];
  }
  add_atb(dk, d.dA, d.part);
}

// Equation (7.1). dg_t sums every factor that contains a_t, and only those: Gam_ij for j < t <= i,
// D_i for i >= t, E_j for j < t, gamma. No differences, hence accurate for any decay.
template <class T>
void decay_gradient(const Chunk<T>& c, ChunkGradients<T>& d, const Matrix<T>& S,
                    const Matrix<T>& dS, const Series<T>& dg) {
  T across = 0;  // c^s = gamma <dS, S>
  for (int64_t i = 0; i < S.rows; ++i) across += decayed(c.decay.gamma, dot(dS[i], S[i], S.cols));
  for (int64_t i = 0; i < c.L; ++i) d.cr[i] = dot(c.R[i], d.dR[i], c.R.cols);
  for (int64_t t = 0; t < c.L; ++t) {
    T sum = across;
    for (int64_t j = 0; j < t; ++j) sum += d.ck[j];
    for (int64_t i = t; i < c.L; ++i) {
      sum += d.cq[i] + d.cr[i];
      for (int64_t j = 0; j < t; ++j) sum += d.Z[i][j];
    }
    dg[t] = sum;
  }
}

template <class T>
void chunk_backward(Chunk<T>& chunk, ChunkGradients<T>& d, const DeltaChunkBackward& a,
                    const ChunkPlace& place) {
  const Matrix<T> dout = chunk_rows<T>(a.dout, place), dv = chunk_rows<T>(a.dv, place);
  const Matrix<T> S = chunk_matrix<T>(a.S_enter, place);
  const Matrix<T> dS = chunk_matrix<T>(a.dS_leave, place);
  const Series<T> dbeta = chunk_series<T>(a.dbeta, place);
  chunk.load(a.in, place);
  chunk.solve(chunk_rows<T>(a.in.v, place), S);
  write_gradients(chunk, d, dout, dS);
  square_gradients(chunk, d, dout);
  query_gradient(chunk, d, dout, S, chunk_rows<T>(a.dq, place));
  key_gradient(chunk, d, S, dS, chunk_rows<T>(a.dk, place));
  for (int64_t i = 0; i < chunk.L; ++i) {  // equations (3), (9)
    for (int64_t j = 0; j < dv.cols; ++j) dv[i][j] = chunk.beta[i] * d.N[i][j];
    dbeta[i] = dot(chunk.Y[i], d.N[i], dv.cols) + dot(chunk.k[i], d.dAK[i], chunk.k.cols);
  }
  decay_gradient(chunk, d, S, dS, chunk_series<T>(a.dg, place));
}

template <class T>
void delta_chunk_backward(Context& context, const DeltaChunkBackward& a) {
  const DeltaShape s(a.in, a.in.v.dim(3));
  ArenaScope scope(*context.scratch);
  Chunk<T> chunk(*context.scratch, s, a.in.scale);
  ChunkGradients<T> gradients(*context.scratch, s);
  context.parallel(1, [&](int64_t, int) {
    for (int64_t b = 0; b < s.B; ++b)
      for (int64_t n = 0; n < s.NC; ++n)
        for (int64_t h = 0; h < s.H; ++h)
          chunk_backward(chunk, gradients, a, chunk_place(s, b, n, h));
  });
}

// ---- One token ---------------------------------------------------------------------------------

template <class T>
void delta_step(Context& context, const DeltaStep& a) {
  const int64_t B = a.S.dim(0), H = a.S.dim(1), V = a.S.dim(2);
  ArenaScope scope(*context.scratch);
  T* error = context.scratch->allocate<T>(V);
  context.parallel(1, [&](int64_t, int) {
    auto row = [](const View& view, int64_t r) {
      return Matrix<T>{view.as<T>() + r * view.stride, 1, view.cols(), view.stride};
    };
    auto scalar = [](const View& view, int64_t b, int64_t h) {
      return Series<T>{view.as<T>() + b * view.stride + h, 1};
    };
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t h = 0; h < H; ++h) {
        const int64_t r = b * H + h;
        const RecurrentHead<T> token{row(a.q, r),
                                     row(a.k, r),
                                     row(a.v, r),
                                     scalar(a.beta, b, h),
                                     scalar(a.g, b, h),
                                     nullptr,
                                     static_cast<T>(a.scale)};
        recurrent_forward(token, row(a.o, r), carried_state<T>(a.S, b, h), error);
      }
    }
  });
}

KLA_OP(delta_scan_forward, reference, delta_scan_forward<double>);
KLA_OP(delta_reverse_scan, reference, delta_reverse_scan<double>);
KLA_OP(delta_chunk_backward, reference, delta_chunk_backward<double>);
KLA_OP(delta_step, reference, delta_step<double>);

}  // namespace
}  // namespace kla::reference
