// The two scans of the gated delta rule: forward in the Y form (KERNEL_MATH 4a) and the reverse
// scan of the state's gradient (KERNEL_MATH 6, equations 1, 2, 4, 10). One task per sequence and
// head walks over the chunks; products with the state touch only the rows a document boundary
// leaves coupled to it (delta_tile.h).
#include "kernels/cpu/delta_tile.h"

namespace kla::cpu {

namespace {

void start_state(const ChunkGrid& grid, const View& initial, int64_t b, int64_t h, MutableTile S) {
  if (initial.empty())
    zero_rows(grid.V, grid.K, S);
  else
    copy_rows(grid.V, grid.K, grid.state(initial, b, h), S);
}

// Factor of each row: a scalar times one or two of the chunk's vectors.
void products(int64_t n, float scale, const float* x, const float* y, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = scale * x[i] * (y ? y[i] : 1.0f);
}

struct ForwardTiles {
  MutableTile S, Qs, R, X;
  float *P, *M;
  explicit ForwardTiles(const ChunkGrid& g, Slice slice)
      : S(slice.tile(g.V, g.K)),
        Qs(slice.tile(C, g.K)),
        R(slice.tile(C, g.V)),
        X(slice.tile(C, g.V)),
        P(slice.take(kChunkTile)),
        M(slice.take(kChunkTile)) {}
  static int64_t floats(const ChunkGrid& g) {
    return Slice::padded(g.V * g.K) + C * g.K + 2 * C * g.V + 2 * kChunkTile;
  }
};

// o of the chunk from the state entering it, then the state leaving it.
void forward_chunk(const ChunkGrid& grid, const DeltaInputs& in, int64_t b, int64_t c, int64_t h,
                   MutableTile o, ForwardTiles& t) {
  const int64_t K = grid.K, V = grid.V;
  ChunkDecay decay;
  load_decay(grid, in, b, c, h, decay);
  const int64_t n = decay.n, head = decay.head, tail = decay.tail;
  const Tile q = grid.tokens(in.q, b, c, h), k = grid.tokens(in.k, b, c, h);
  const Tile v = grid.tokens(in.v, b, c, h);
  const float scale = static_cast<float>(in.scale);

  lower_of_product(n, K, q, k, {t.P, C});
  gate_scores(decay, scale, t.P);
  gate_inverse(decay, grid.matrix(in.T_zero, b, c, h), t.M);
  scale_columns(decay, t.M, t.M);

  gemm(Form::transposed_b, head, V, K, k, t.S, 0, t.R);
  subtract_scaled_rows(head, V, v, decay.D, t.R, t.R);  // Y, in the place of R
  copy_rows(n - head, V, {v.data + head * v.ld, v.ld}, {t.R.data + head * V, V});
  lower_times(n, V, {t.M, C}, t.R, 0, t.X);

  alignas(64) float factor[C];
  products(head, scale, decay.D, nullptr, factor);
  scale_rows(head, K, factor, q, t.Qs);
  gemm(Form::transposed_b, head, V, K, t.Qs, t.S, 0, o);
  zero_rows(n - head, V, {o.data + head * o.ld, o.ld});
  lower_times(n, V, {t.P, C}, t.X, 1, o);

  const MutableTile X_tail{t.X.data + tail * V, V};
  scale_rows(n - tail, V, decay.E + tail, X_tail, X_tail);
  gemm(Form::transposed_a, V, K, n - tail, X_tail, {k.data + tail * k.ld, k.ld}, decay.gamma, t.S);
}

void scan_forward(Context& context, const DeltaScanForward& a) {
  const ChunkGrid grid(a.in, a.o);
  ArenaScope scope(*context.scratch);
  const WorkerScratch scratch(context, ForwardTiles::floats(grid));
  context.parallel(grid.B * grid.H, [&](int64_t task, int worker) {
    const int64_t b = task / grid.H, h = task % grid.H;
    ForwardTiles t(grid, scratch[worker]);
    start_state(grid, a.S_initial, b, h, t.S);
    for (int64_t c = 0; c < grid.NC; ++c) {
      if (!a.S_enter.empty()) copy_rows(grid.V, grid.K, t.S, grid.matrix(a.S_enter, b, c, h));
      forward_chunk(grid, a.in, b, c, h, grid.tokens(a.o, b, c, h), t);
    }
    if (!a.S_final.empty()) copy_rows(grid.V, grid.K, t.S, grid.state(a.S_final, b, h));
  });
}

struct ReverseTiles {
  MutableTile dS, rows, dX, N;
  float *P, *Tg;
  explicit ReverseTiles(const ChunkGrid& g, Slice slice)
      : dS(slice.tile(g.V, g.K)),
        rows(slice.tile(C, g.K)),
        dX(slice.tile(C, g.V)),
        N(slice.tile(C, g.V)),
        P(slice.take(kChunkTile)),
        Tg(slice.take(kChunkTile)) {}
  static int64_t floats(const ChunkGrid& g) { return ForwardTiles::floats(g); }
};

// From the gradient of the state leaving the chunk to that of the state entering it.
void reverse_chunk(const ChunkGrid& grid, const DeltaInputs& in, int64_t b, int64_t c, int64_t h,
                   Tile dout, ReverseTiles& t) {
  const int64_t K = grid.K, V = grid.V;
  ChunkDecay decay;
  load_decay(grid, in, b, c, h, decay);
  const int64_t n = decay.n, head = decay.head, tail = decay.tail;
  const Tile q = grid.tokens(in.q, b, c, h), k = grid.tokens(in.k, b, c, h);
  const float scale = static_cast<float>(in.scale);

  if (head == 0) {  // a document starts with the chunk: nothing before it is coupled to it
    zero_rows(V, K, t.dS);
    return;
  }
  lower_of_product(n, K, q, k, {t.P, C});
  gate_scores(decay, scale, t.P);
  gate_inverse(decay, grid.matrix(in.T_zero, b, c, h), t.Tg);

  lower_transposed_times(n, V, {t.P, C}, dout, 0, t.dX);
  scale_rows(n - tail, K, decay.E + tail, {k.data + tail * k.ld, k.ld}, t.rows);
  gemm(Form::transposed_b, n - tail, V, K, t.rows, t.dS, 1, {t.dX.data + tail * V, V});
  lower_transposed_times(n, V, {t.Tg, C}, t.dX, 0, t.N);

  alignas(64) float factor[C];
  products(head, scale, decay.D, nullptr, factor);
  scale_rows(head, K, factor, q, t.rows);
  gemm(Form::transposed_a, V, K, head, dout, t.rows, decay.gamma, t.dS);
  products(head, -1, decay.D, decay.beta, factor);
  scale_rows(head, K, factor, k, t.rows);
  gemm(Form::transposed_a, V, K, head, t.N, t.rows, 1, t.dS);
}

void reverse_scan(Context& context, const DeltaReverseScan& a) {
  const ChunkGrid grid(a.in, a.dout);
  ArenaScope scope(*context.scratch);
  const WorkerScratch scratch(context, ReverseTiles::floats(grid));
  context.parallel(grid.B * grid.H, [&](int64_t task, int worker) {
    const int64_t b = task / grid.H, h = task % grid.H;
    ReverseTiles t(grid, scratch[worker]);
    start_state(grid, a.dS_final, b, h, t.dS);
    for (int64_t c = grid.NC - 1; c >= 0; --c) {
      copy_rows(grid.V, grid.K, t.dS, grid.matrix(a.dS_leave, b, c, h));
      reverse_chunk(grid, a.in, b, c, h, grid.tokens(a.dout, b, c, h), t);
    }
    if (!a.dS_initial.empty()) copy_rows(grid.V, grid.K, t.dS, grid.state(a.dS_initial, b, h));
  });
}

KLA_OP(delta_scan_forward, cpu, scan_forward);
KLA_OP(delta_reverse_scan, cpu, reverse_scan);

}  // namespace

}  // namespace kla::cpu
