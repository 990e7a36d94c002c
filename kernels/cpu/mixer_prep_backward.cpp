// Backward of mixer_prep (KERNEL_MATH 10). A task walks over a run of chunks of one head,
// recomputes the convolutions with a halo of the three tokens that read from the chunk, and keeps
// its share of the parameter gradients; a second phase adds the shares in task order.
#include <cmath>

#include "kernels/cpu/delta_tile.h"
#include "kernels/cpu/mixer_gates.h"
#include "kernels/cpu/mixer_tokens.h"

namespace kla::cpu {

namespace {

constexpr int64_t kMaxShares = 64;  // shares of a parameter's gradient, about: bounds their memory

// How the chunks of a sequence are grouped; a function of the shape alone.
struct Runs {
  int64_t chunks, run, per_sequence;  // chunks in a sequence, in a run, runs in a sequence
  explicit Runs(const MixerShape& s) : chunks(chunk_count(s.T)) {
    const int64_t wanted = std::max<int64_t>(1, kMaxShares / std::max<int64_t>(s.B, 1));
    run = std::max<int64_t>(1, (chunks + wanted - 1) / wanted);
    per_sequence = (chunks + run - 1) / run;
  }
};

// A task's share of the parameter gradients of its head.
struct Share {
  float *q, *k, *v;  // [4][K], [4][K], [4][V]
  double* scalars;   // [kScalars]
};
enum { kBBias, kALog, kABias, kScalar, kScalars };

struct Shares {
  MixerShape s;
  int64_t runs, floats;
  float* conv;      // [B, runs, H, floats]
  double* scalars;  // [B, runs, H, kScalars]

  Shares(Context& context, const MixerShape& shape, const Runs& r)
      : s(shape), runs(s.B * r.per_sequence), floats(kConvWidth * (2 * s.K + s.V)) {
    conv = context.scratch->allocate<float>(runs * s.H * floats);
    scalars = context.scratch->allocate<double>(runs * s.H * kScalars);
  }
  Share of(int64_t run, int64_t h) const {
    const int64_t i = run * s.H + h;
    float* base = conv + i * floats;
    return {base, base + kConvWidth * s.K, base + 2 * kConvWidth * s.K, scalars + i * kScalars};
  }
};

// One of q, k, v in a tile of tokens and their halo.
struct Stream {
  ConvChannels channels;
  MutableTile y, slope;  // slope becomes dc
  float *w, *share;
  bool silu;
  Tile dy_hat;
  TapRows taps[kRows];
  alignas(64) float squares[kRows], dots[kRows];
};

struct Task {
  const MixerPrepBackward& a;
  const MixerShape& s;
  int64_t b, h;
  Documents documents;
  HeadGates gates;
  const RuleInfo& rule;
  const float* zeros;
  Share share;
  int64_t t, rows, halo_rows;  // tokens of the chunk, with its halo

  Tile tokens(const View& view) const {
    return {view.as<float>() + ((b * s.T + t) * s.H + h) * view.stride, s.H * view.stride};
  }
  float scalar(const View& view, int64_t i) const {
    return view.as<float>()[(b * s.T + t + i) * view.stride + h];
  }
};

int64_t worker_floats(const MixerShape& s) {
  const int64_t widest = std::max(s.K, s.V);
  return Slice::padded(widest) + (kConvWidth + 2 * kRows) * 3 * Slice::padded(widest);
}

void recompute(Task& u, Stream& x, const View& dy_hat) {
  x.dy_hat = u.tokens(dy_hat);
  find_taps(u.s, x.channels, u.documents, u.b, u.t, u.h, u.halo_rows, u.zeros, x.taps);
  conv_recompute({u.halo_rows, x.channels.width, x.taps, x.w, x.silu, x.dy_hat, x.y, x.slope,
                  x.squares, x.dots});
}

// From the gradient of what the convolution fed (in x.slope) to those of its input and weights.
void convolve_back(Task& u, Stream& x, const View& dx) {
  TapRows later[kRows];
  const Tile dc = x.slope;
  for (int64_t i = 0; i < u.rows; ++i) {
    bool reads = true;
    for (int64_t ahead = 0; ahead < kConvWidth; ++ahead) {
      reads = reads && i + ahead < u.halo_rows && !(ahead && u.documents.starts(u.t + i + ahead));
      later[i][static_cast<size_t>(ahead)] = reads ? dc.data + (i + ahead) * dc.ld : u.zeros;
    }
  }
  const int64_t width = x.channels.width;
  conv_backward({u.rows,
                 width,
                 x.taps,
                 later,
                 x.w,
                 {dx.as<float>() + (u.b * u.s.T + u.t) * dx.stride + u.h * width, dx.stride},
                 x.share});
}

// The gradient of a row before its norm is alpha dy_hat + gamma y; this one is that of a row which
// is not normalised.
struct Slope {
  float alpha = 1, gamma = 0;
};

// Of y_hat = y / sqrt(|y|^2 + kUnitEps), row i.
Slope unit_slope(const Stream& x, int64_t i) {
  const double r = 1 / std::sqrt(x.squares[i] + kUnitEps);
  return {static_cast<float>(r), static_cast<float>(-r * r * r * x.dots[i])};
}

void query_backward(Task& u, Stream& q) {
  recompute(u, q, u.a.dq_hat);
  if (u.rule.query == QueryMap::softmax) {
    softmax_rows(u.halo_rows, u.s.K, q.y);
    softmax_backward_rows(u.halo_rows, u.s.K, q.y, q.dy_hat, q.slope);
  } else {
    alignas(64) float alpha[kRows], gamma[kRows];
    for (int64_t i = 0; i < u.halo_rows; ++i) {
      const Slope slope = u.rule.query == QueryMap::unit ? unit_slope(q, i) : Slope{};
      alpha[i] = slope.alpha;
      gamma[i] = slope.gamma;
    }
    norm_backward(u.halo_rows, u.s.K, alpha, q.dy_hat, gamma, q.y, q.slope, q.slope);
  }
  convolve_back(u, q, u.a.dq);
}

// da, db and the shares of the scalar parameters; dn gets the gradient of the squared key norms.
void gates_backward(Task& u, const float* n, double* dn) {
  const HeadGates& gates = u.gates;
  float* da = u.a.da.as<float>();
  float* db = u.a.db.as<float>();
  int64_t position = u.documents.position(u.t - 1);
  for (int64_t i = 0; i < u.halo_rows; ++i) {
    position = u.documents.starts(u.t + i) ? 1 : position + 1;
    const double eta = sigmoid(u.scalar(u.a.in.b, i) + gates.b_bias);
    const StepValue<double> step = gates.step(eta, n[i], static_cast<double>(position));
    const double dbeta = u.scalar(u.a.dbeta, i), dg = u.scalar(u.a.dg, i);
    dn[i] = dbeta * step.d_n;
    if (i >= u.rows) continue;
    const HeadGates::Decay decay = gates.decay(u.scalar(u.a.in.a, i), eta);
    const double da_i = dg * decay.d_a;
    const double db_i = (dbeta * step.d_eta + dg * decay.d_eta) * eta * (1 - eta);
    const int64_t m = u.b * u.s.T + u.t + i;
    da[m * u.a.da.stride + u.h] = static_cast<float>(da_i);
    db[m * u.a.db.stride + u.h] = static_cast<float>(db_i);
    u.share.scalars[kBBias] += db_i;
    u.share.scalars[kABias] += da_i;
    u.share.scalars[kALog] += dg * decay.g;
    u.share.scalars[kScalar] += dbeta * step.d_scalar;
  }
}

void key_value_backward(Task& u, Stream& k, Stream& v) {
  alignas(64) float alpha[kRows], gamma[kRows], value_alpha[kRows], value_gamma[kRows];
  double dn[kRows];
  recompute(u, k, u.a.dk_hat);
  recompute(u, v, u.a.dv_hat);
  gates_backward(u, k.squares, dn);
  const bool over_norm = u.rule.value == ValueMap::over_key_norm;
  for (int64_t i = 0; i < u.halo_rows; ++i) {
    const double r = 1 / std::sqrt(k.squares[i] + u.gates.options.eps);
    const double along = (k.dots[i] + (over_norm ? v.dots[i] : 0.0)) * r;  // dkh.kh + dvh.vh
    alpha[i] = static_cast<float>(r);
    gamma[i] = static_cast<float>(2 * dn[i] - along * r * r);
    const Slope value = u.rule.value == ValueMap::unit ? unit_slope(v, i) : Slope{};
    value_alpha[i] = over_norm ? alpha[i] : value.alpha;
    value_gamma[i] = value.gamma;
  }
  if (u.rule.key == KeyMap::softmax) {
    softmax_rows(u.halo_rows, u.s.K, k.y);
    softmax_backward_rows(u.halo_rows, u.s.K, k.y, k.dy_hat, k.slope);
  } else {
    norm_backward(u.halo_rows, u.s.K, alpha, k.dy_hat, gamma, k.y, k.slope, k.slope);
  }
  norm_backward(u.halo_rows, u.s.V, value_alpha, v.dy_hat, value_gamma, v.y, v.slope, v.slope);
  convolve_back(u, k, u.a.dk);
  convolve_back(u, v, u.a.dv);
}

void start_stream(Stream& x, Slice& slice, int64_t h, float* share, bool silu) {
  const int64_t width = x.channels.width;
  x.w = slice.take(kConvWidth * width);
  x.y = slice.tile(kRows, width);
  x.slope = slice.tile(kRows, width);
  x.share = share;
  x.silu = silu;
  transpose_taps(x.channels, h, x.w);
  std::fill_n(share, kConvWidth * width, 0.0f);
}

void backward_run(const MixerPrepBackward& a, const MixerShape& s, const Runs& runs, int64_t run,
                  int64_t h, const Share& share, Slice slice) {
  const RuleInfo& rule = rule_info(a.options.rule);
  float* zeros = slice.take(std::max(s.K, s.V));
  std::fill_n(zeros, std::max(s.K, s.V), 0.0f);
  Stream q{}, k{}, v{};
  q.channels = query_channels(s, a.in, a.w.q_conv);
  k.channels = key_channels(s, a.in, a.w.k_conv);
  v.channels = value_channels(s, a.in, a.w.v_conv);
  start_stream(q, slice, h, share.q, rule.query != QueryMap::softmax);
  start_stream(k, slice, h, share.k, rule.key != KeyMap::softmax);
  start_stream(v, slice, h, share.v, true);
  std::fill_n(share.scalars, +kScalars, 0.0);

  const int64_t b = run / runs.per_sequence, first = run % runs.per_sequence * runs.run;
  Task u{a,     s, b, h, Documents(a.in, b, s.T), HeadGates(a.options, a.w, h), rule, zeros,
         share, 0, 0, 0};
  for (int64_t c = first; c < std::min(first + runs.run, runs.chunks); ++c) {
    u.t = c * C;
    u.rows = std::min(C, s.T - u.t);
    u.halo_rows = std::min(kRows, s.T - u.t);
    query_backward(u, q);
    key_value_backward(u, k, v);
  }
}

void add_conv(const Shares& shares, int64_t h, int64_t width, float* Share::*part, const View& dw) {
  for (int64_t j = 0; j < width; ++j) {
    float* out = dw.as<float>() + (h * width + j) * dw.stride;
    for (int64_t i = 0; i < kConvWidth; ++i)
      for (int64_t run = 0; run < shares.runs; ++run)
        out[i] += (shares.of(run, h).*part)[i * width + j];
  }
}

double total(const Shares& shares, int64_t h, int which) {
  double sum = 0;
  for (int64_t run = 0; run < shares.runs; ++run) sum += shares.of(run, h).scalars[which];
  return sum;
}

void add_head(const MixerPrepBackward& a, const Shares& shares, int64_t h) {
  add_conv(shares, h, shares.s.K, &Share::q, a.dw.q_conv);
  add_conv(shares, h, shares.s.K, &Share::k, a.dw.k_conv);
  add_conv(shares, h, shares.s.V, &Share::v, a.dw.v_conv);
  const auto add = [&](const View& dw, int which) {
    if (!dw.empty()) dw.as<float>()[h] += static_cast<float>(total(shares, h, which));
  };
  add(a.dw.b_bias, kBBias);
  if (a.options.decay == DecayGate::dual_mamba) add(a.dw.a_log, kALog);
  if (a.options.decay != DecayGate::single) add(a.dw.a_bias, kABias);
}

// lambda = softplus(theta), one for all heads or one for each.
void add_theta(const MixerPrepBackward& a, const Shares& shares) {
  if (a.dw.theta.empty() || a.w.theta.empty()) return;
  const int64_t count = a.w.theta.size();
  for (int64_t i = 0; i < count; ++i) {
    double sum = 0;
    for (int64_t h = i; h < shares.s.H; h += count) sum += total(shares, h, kScalar);
    a.dw.theta.as<float>()[i] += static_cast<float>(sum * sigmoid(a.w.theta.as<float>()[i]));
  }
}

void backward(Context& context, const MixerPrepBackward& a) {
  const MixerShape s(a.in);
  const Runs runs(s);
  ArenaScope scope(*context.scratch);
  const Shares shares(context, s, runs);
  const WorkerScratch scratch(context, worker_floats(s));
  context.parallel(shares.runs * s.H, [&](int64_t task, int worker) {
    const int64_t h = task % s.H, run = task / s.H;
    backward_run(a, s, runs, run, h, shares.of(run, h), scratch[worker]);
  });
  context.parallel(s.H + 1, [&](int64_t h, int) {
    if (h < s.H)
      add_head(a, shares, h);
    else
      add_theta(a, shares);
  });
}

KLA_OP(mixer_prep_backward, cpu, backward);

}  // namespace

}  // namespace kla::cpu
