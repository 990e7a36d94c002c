// From the projections of a mixer to what the scan needs, one task per chunk and head: convolution,
// SiLU, norms and rescaling in one pass over the head's channels, step size and decay per token,
// and the gate-free inverse of the chunk (KERNEL_MATH 5 and 10).
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "kernels/cpu/delta_tile.h"
#include "kernels/cpu/mixer_gates.h"
#include "kernels/cpu/mixer_tokens.h"

namespace kla::cpu {

namespace {

struct ForwardTask {
  const MixerPrepForward& a;
  const MixerShape& s;
  int64_t b, t, h, rows;  // tokens [t, t + rows) of sequence b, head h
  Slice slice;
  Documents documents;
  alignas(64) float beta[C];

  MutableTile out(const View& view) const {
    return {view.as<float>() + ((b * s.T + t) * s.H + h) * view.stride, s.H * view.stride};
  }
  static int64_t floats(const MixerShape& s) {
    return 5 * Slice::padded(std::max(s.K, s.V)) + kChunkTile;
  }
};

void convolve(ForwardTask& u, const ConvChannels& channels, bool silu, const float* factor,
              MutableTile y, float* squares) {
  Slice slice = u.slice;
  float *zeros = slice.take(channels.width), *w = slice.take(kConvWidth * channels.width);
  std::fill_n(zeros, channels.width, 0.0f);
  transpose_taps(channels, u.h, w);
  TapRows taps[C];
  find_taps(u.s, channels, u.documents, u.b, u.t, u.h, u.rows, zeros, taps);
  conv_forward({u.rows, channels.width, taps, w, silu, factor, y, squares});
}

// x / sqrt(|x|^2 + kUnitEps), row by row; the squares are used up.
void scale_to_unit(int64_t rows, int64_t width, float* squares, MutableTile x) {
  for (int64_t i = 0; i < rows; ++i)
    squares[i] = static_cast<float>(1 / std::sqrt(squares[i] + kUnitEps));
  scale_rows(rows, width, squares, x, x);
}

// q-hat, k-hat, v-hat; the squared key norms go to n.
void normalise(ForwardTask& u, const RuleInfo& rule, float* n) {
  alignas(64) float factor[C], squares[C];
  const MutableTile k = u.out(u.a.k_hat), q = u.out(u.a.q_hat), v = u.out(u.a.v_hat);
  const bool soft_keys = rule.key == KeyMap::softmax, soft_query = rule.query == QueryMap::softmax;
  convolve(u, key_channels(u.s, u.a.in, u.a.w.k_conv), !soft_keys, nullptr, k, n);
  for (int64_t i = 0; i < u.rows; ++i)
    factor[i] = static_cast<float>(1 / std::sqrt(n[i] + u.a.options.eps));
  if (soft_keys)
    softmax_rows(u.rows, u.s.K, k);
  else
    scale_rows(u.rows, u.s.K, factor, k, k);

  convolve(u, value_channels(u.s, u.a.in, u.a.w.v_conv), true,
           rule.value == ValueMap::over_key_norm ? factor : nullptr, v,
           rule.value == ValueMap::unit ? squares : nullptr);
  if (rule.value == ValueMap::unit) scale_to_unit(u.rows, u.s.V, squares, v);

  convolve(u, query_channels(u.s, u.a.in, u.a.w.q_conv), !soft_query, nullptr, q, squares);
  if (soft_query) softmax_rows(u.rows, u.s.K, q);
  if (rule.query == QueryMap::unit) scale_to_unit(u.rows, u.s.K, squares, q);
}

void gates(ForwardTask& u, const float* n) {
  const HeadGates gates(u.a.options, u.a.w, u.h);
  const float* a = u.a.in.a.as<float>() + u.h;
  const float* b = u.a.in.b.as<float>() + u.h;
  int64_t position = u.documents.position(u.t - 1);
  for (int64_t i = 0; i < u.rows; ++i) {
    const int64_t m = u.b * u.s.T + u.t + i;
    const double eta = sigmoid(b[m * u.a.in.b.stride] + gates.b_bias);
    position = u.documents.starts(u.t + i) ? 1 : position + 1;
    const double g = gates.decay(a[m * u.a.in.a.stride], eta).g;
    u.beta[i] = static_cast<float>(gates.step(eta, n[i], static_cast<double>(position)).beta_hat);
    u.a.beta.as<float>()[m * u.a.beta.stride + u.h] = u.beta[i];
    u.a.g.as<float>()[m * u.a.g.stride + u.h] = static_cast<float>(g);
  }
}

// T_zero = (I + A)^-1, A_ij = beta_i k_i.k_j below the diagonal.
void invert(ForwardTask& u) {
  const View& T_zero = u.a.T_zero;
  float* A = Slice(u.slice).take(kChunkTile);
  const Tile k = u.out(u.a.k_hat);
  lower_of_product(u.rows, u.s.K, k, k, {A, C});
  scale_rows(u.rows, C, u.beta, {A, C}, {A, C});
  const int64_t matrix = (u.b * chunk_count(u.s.T) + u.t / C) * u.s.H + u.h;
  unit_lower_inverse(u.rows, A, {T_zero.as<float>() + matrix * C * T_zero.stride, T_zero.stride});
}

// The last three raw inputs of every channel, zeros where a document start hides them. Rows are
// written oldest first, so the old tail may be the same memory.
void advance_tail(const MixerPrepForward& a, const MixerShape& s, int64_t b) {
  const Documents documents(a.in, b, s.T);
  const int64_t seen = documents.past(s.T);  // taps of the token that comes next
  for (const ConvChannels& channels :
       {query_channels(s, a.in, a.w.q_conv), key_channels(s, a.in, a.w.k_conv),
        value_channels(s, a.in, a.w.v_conv)}) {
    const size_t bytes = static_cast<size_t>(s.H * channels.width) * sizeof(float);
    for (int64_t i = 0; i < kConvTail; ++i) {
      const int64_t source = s.T - kConvTail + i;
      float* to = a.conv_tail_out.as<float>() + (b * kConvTail + i) * a.conv_tail_out.stride +
                  channels.first;
      if (kConvTail - i > seen || (source < 0 && channels.tail.empty()))
        std::memset(to, 0, bytes);
      else if (source >= 0)
        std::memcpy(to, channels.x.as<float>() + (b * s.T + source) * channels.x.stride, bytes);
      else
        std::memmove(to,
                     channels.tail.as<float>() +
                         (b * kConvTail + kConvTail + source) * channels.tail.stride +
                         channels.first,
                     bytes);
    }
  }
}

void forward(Context& context, const MixerPrepForward& a) {
  const MixerShape s(a.in);
  KLA_CHECK(a.T_zero.empty() || a.T_zero.dim(4) == C,
            "the cpu kernels take chunks of 64, not " + a.T_zero.describe());
  const int64_t NC = chunk_count(s.T);
  ArenaScope scope(*context.scratch);
  const WorkerScratch scratch(context, ForwardTask::floats(s));
  context.parallel(s.B * NC * s.H, [&](int64_t task, int worker) {
    const int64_t h = task % s.H, c = task / s.H % NC, b = task / (s.H * NC);
    ForwardTask u{.a = a,
                  .s = s,
                  .b = b,
                  .t = c * C,
                  .h = h,
                  .rows = std::min(C, s.T - c * C),
                  .slice = scratch[worker],
                  .documents = Documents(a.in, b, s.T),
                  .beta = {}};
    alignas(64) float n[C];
    normalise(u, rule_info(a.options.rule), n);
    gates(u, n);
    if (!a.T_zero.empty()) invert(u);
  });
  context.parallel(s.B, [&](int64_t b, int) {
    if (!a.conv_tail_out.empty()) advance_tail(a, s, b);
    if (!a.position_out.empty())
      a.position_out.as<int64_t>()[b] = Documents(a.in, b, s.T).position(s.T - 1);
  });
}

KLA_OP(mixer_prep_forward, cpu, forward);

}  // namespace

}  // namespace kla::cpu
