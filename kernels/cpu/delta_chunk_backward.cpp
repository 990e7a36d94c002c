// All gradients of a chunk but the state's (KERNEL_MATH 6, with the cancellation-free gate gradient
// 7.1), from the state entering it and the gradient of the state leaving it. One task per chunk and
// head.
#include <algorithm>

#include "kernels/cpu/delta_tile.h"

namespace kla::cpu {

namespace {

struct Tiles {
  MutableTile R, Y, X, dX, N, rows;
  float *P, *KK, *Tg, *M, *dP, *NX;
  explicit Tiles(const ChunkGrid& g, Slice slice)
      : R(slice.tile(C, g.V)),
        Y(slice.tile(C, g.V)),
        X(slice.tile(C, g.V)),
        dX(slice.tile(C, g.V)),
        N(slice.tile(C, g.V)),
        rows(slice.tile(C, g.K)),
        P(slice.take(kChunkTile)),
        KK(slice.take(kChunkTile)),
        Tg(slice.take(kChunkTile)),
        M(slice.take(kChunkTile)),
        dP(slice.take(kChunkTile)),
        NX(slice.take(kChunkTile)) {}
  static int64_t floats(const ChunkGrid& g) { return C * (5 * g.V + g.K) + 6 * kChunkTile; }
};

// One chunk of one head: where its inputs and outputs lie.
struct Chunk {
  int64_t K, V;
  float scale;
  Tile q, k, v, dout, S, dS, T_zero;
  MutableTile dq, dk, dv, dbeta, dg;
  ChunkDecay decay;
};

Tile from_row(Tile t, int64_t row) {
  return {t.data + row * t.ld, t.ld};
}
MutableTile from_row(MutableTile t, int64_t row) {
  return {t.data + row * t.ld, t.ld};
}

// R, Y, X, dX, N (equations 1 and 2 and what they need).
void solve(const Chunk& u, Tiles& t) {
  const int64_t n = u.decay.n, head = u.decay.head, tail = u.decay.tail, K = u.K, V = u.V;
  lower_of_product(n, K, u.q, u.k, {t.P, C});
  gate_scores(u.decay, u.scale, t.P);
  lower_of_product(n, K, u.k, u.k, {t.KK, C});
  gate_inverse(u.decay, u.T_zero, t.Tg);
  scale_columns(u.decay, t.Tg, t.M);

  gemm(Form::transposed_b, head, V, K, u.k, u.S, 0, t.R);
  subtract_scaled_rows(head, V, u.v, u.decay.D, t.R, t.Y);
  copy_rows(n - head, V, from_row(u.v, head), from_row(t.Y, head));
  lower_times(n, V, {t.M, C}, t.Y, 0, t.X);

  lower_transposed_times(n, V, {t.P, C}, u.dout, 0, t.dX);
  scale_rows(n - tail, K, u.decay.E + tail, from_row(u.k, tail), t.rows);
  gemm(Form::transposed_b, n - tail, V, K, t.rows, u.dS, 1, from_row(t.dX, tail));
  lower_transposed_times(n, V, {t.Tg, C}, t.dX, 0, t.N);
}

// What the decay towards the state adds to dg: D_i for i >= t, E_j for j < t, and gamma.
void add_state_decay(const Chunk& u, const float* from_D, const float* from_E, float* dg) {
  float gamma_part = 0;
  if (u.decay.head == u.decay.n) {
    alignas(64) float sums[C];
    for (int64_t v = 0; v < u.V; v += C) {
      const int64_t rows = std::min(C, u.V - v);
      row_dots(rows, u.K, from_row(u.S, v), from_row(u.dS, v), sums);
      for (int64_t i = 0; i < rows; ++i) gamma_part += sums[i];
    }
    gamma_part *= u.decay.gamma;
  }
  float suffix = 0, prefix = 0;
  for (int64_t t = u.decay.n - 1; t >= 0; --t) {
    suffix += from_D[t];
    dg[t] += suffix;
  }
  for (int64_t t = 0; t < u.decay.n; ++t) {
    dg[t] += prefix + gamma_part;
    prefix += from_E[t];
  }
}

void chunk_backward(const Chunk& u, Tiles& t) {
  const int64_t n = u.decay.n, head = u.decay.head, tail = u.decay.tail, K = u.K, V = u.V;
  solve(u, t);

  alignas(64) float dbeta[C], dg[C] = {}, factor[C], sums[C], from_D[C] = {}, from_E[C] = {};
  row_dots(n, V, t.Y, t.N, dbeta);
  scale_rows(n, V, u.decay.beta, t.N, u.dv);
  for (int64_t i = 0; i < head; ++i) factor[i] = -u.decay.D[i];
  const MutableTile dR = t.dX;  // dX has served
  scale_rows_and_dot(head, V, factor, u.dv, dR, t.R, from_D);

  lower_of_product(n, V, u.dout, t.X, {t.dP, C});
  lower_of_product(n, V, t.N, t.X, {t.NX, C});
  chunk_adjoint(u.decay, u.scale, {t.P, t.KK, t.dP, t.NX, dbeta, dg});

  for (int64_t i = 0; i < head; ++i) factor[i] = u.scale * u.decay.D[i];
  gemm(Form::plain, head, K, V, u.dout, u.S, 0, u.dq);
  scale_rows_and_dot(head, K, factor, u.dq, u.dq, u.q, sums);
  for (int64_t i = 0; i < head; ++i) from_D[i] += sums[i];
  zero_rows(n - head, K, from_row(u.dq, head));
  lower_times(n, K, {t.dP, C}, u.k, 1, u.dq);

  zero_rows(tail, K, u.dk);
  const MutableTile dk_tail = from_row(u.dk, tail);
  gemm(Form::plain, n - tail, K, V, from_row(t.X, tail), u.dS, 0, dk_tail);
  scale_rows_and_dot(n - tail, K, u.decay.E + tail, dk_tail, dk_tail, from_row(u.k, tail),
                     from_E + tail);
  gemm(Form::plain, head, K, V, dR, u.S, 1, u.dk);
  lower_transposed_times(n, K, {t.dP, C}, u.q, 1, u.dk);
  gemm(Form::plain, n, K, n, {t.NX, C}, u.k, 1, u.dk);

  add_state_decay(u, from_D, from_E, dg);
  for (int64_t i = 0; i < n; ++i) {
    u.dbeta.data[i * u.dbeta.ld] = dbeta[i];
    u.dg.data[i * u.dg.ld] = dg[i];
  }
}

void backward(Context& context, const DeltaChunkBackward& a) {
  const ChunkGrid grid(a.in, a.dout);
  ArenaScope scope(*context.scratch);
  const WorkerScratch scratch(context, Tiles::floats(grid));
  context.parallel(grid.B * grid.NC * grid.H, [&](int64_t task, int worker) {
    const int64_t h = task % grid.H, c = task / grid.H % grid.NC, b = task / (grid.H * grid.NC);
    Chunk u{.K = grid.K,
            .V = grid.V,
            .scale = static_cast<float>(a.in.scale),
            .q = grid.tokens(a.in.q, b, c, h),
            .k = grid.tokens(a.in.k, b, c, h),
            .v = grid.tokens(a.in.v, b, c, h),
            .dout = grid.tokens(a.dout, b, c, h),
            .S = grid.matrix(a.S_enter, b, c, h),
            .dS = grid.matrix(a.dS_leave, b, c, h),
            .T_zero = grid.matrix(a.in.T_zero, b, c, h),
            .dq = grid.tokens(a.dq, b, c, h),
            .dk = grid.tokens(a.dk, b, c, h),
            .dv = grid.tokens(a.dv, b, c, h),
            .dbeta = grid.scalars(a.dbeta, b, c, h),
            .dg = grid.scalars(a.dg, b, c, h),
            .decay = {}};
    load_decay(grid, a.in, b, c, h, u.decay);
    Tiles tiles(grid, scratch[worker]);
    chunk_backward(u, tiles);
  });
}

KLA_OP(delta_chunk_backward, cpu, backward);

}  // namespace

}  // namespace kla::cpu
