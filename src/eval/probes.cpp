#include "eval/probes.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/device.h"
#include "core/error.h"
#include "eval/mixer_tap.h"
#include "kernels/reference/recurrent.h"
#include "kernels/reference/short_conv.h"

namespace kla {
namespace {

using reference::Matrix;
using Values = std::vector<double>;
using Samples = std::array<Values, kProbes>;

// Evenly spread over `chunks`, the last one among them.
std::vector<int64_t> chosen_chunks(int64_t chunks) {
  const int64_t count = std::min(chunks, kProbeChunks);
  std::vector<int64_t> chosen;
  for (int64_t i = 1; i <= count; ++i) chosen.push_back(i * chunks / count - 1);
  return chosen;
}

// Tokens [first, first + count) of a view of [T,...].
View tokens_of(View view, int64_t first, int64_t count) {
  const int64_t bytes = view.rows() / view.dim(0) * view.stride * size_of(view.dtype);
  view.shape[0] = count;
  if (view.data) view.data = static_cast<std::byte*>(view.data) + first * bytes;
  return view;
}

// What the chunks of a layer share.
struct MixerShape {
  int64_t H, K, V, C;
  RuleInfo rule;
  double eps;
  Values k_conv, v_conv;  // [H*K,4], [H*V,4]

  MixerShape(const Context& context, const MixerPrepForward& prep)
      : H(prep.k_hat.dim(2)),
        K(prep.k_hat.dim(3)),
        V(prep.v_hat.dim(3)),
        C(prep.T_zero.dim(4)),
        rule(rule_info(prep.options.rule)),
        eps(prep.options.eps),
        k_conv(host_values(context, prep.w.k_conv)),
        v_conv(host_values(context, prep.w.v_conv)) {}
};

// One chunk of the first sequence on the host, all heads.
struct MixerChunk {
  int64_t L;                   // tokens
  int64_t lead;                // tokens before them that their convolutions read
  Values k, v, beta, g;        // [L,H,K], [L,H,V], [L,H]: as the kernels see them
  Values k_raw, v_raw;         // [lead+L,H*K], [lead+L,H*V]: projections
  std::vector<uint8_t> reset;  // [lead+L], or empty
  Values T_zero, S_enter;      // [H,C,C], [H,V,K]

  MixerChunk(const Context& context, const MixerPrepForward& prep, const DeltaScanForward& scan,
             int64_t n, int64_t tokens) {
    const int64_t C = prep.T_zero.dim(4), first = n * C;
    L = std::min(C, tokens - first);
    lead = std::min(kConvTail, first);
    auto rows = [&](const View& view, int64_t before) {
      return host_values(context, tokens_of(sequence_of(view, 0), first - before, before + L));
    };
    k = rows(prep.k_hat, 0);
    v = rows(prep.v_hat, 0);
    beta = rows(prep.beta, 0);
    g = rows(prep.g, 0);
    k_raw = rows(prep.in.k, lead);
    v_raw = rows(prep.in.v, lead);
    T_zero = host_values(context, sequence_of(sequence_of(prep.T_zero, 0), n));
    S_enter = host_values(context, sequence_of(sequence_of(scan.S_enter, 0), n));
    if (prep.in.reset.empty()) return;
    const auto all = downloaded<uint8_t>(context, sequence_of(prep.in.reset, 0));
    reset.assign(all.begin() + first - lead, all.begin() + first + L);
  }

  bool resets_at(int64_t i) const {
    return !reset.empty() && reset[static_cast<size_t>(lead + i)] != 0;
  }
};

// A matrix over values that are only read.
Matrix<double> matrix_of(const Values& values, int64_t first, int64_t rows, int64_t cols,
                         int64_t stride) {
  return {const_cast<double*>(values.data()) + first, rows, cols, stride};
}

double norm_of(const double* x, int64_t n) {
  return std::sqrt(reference::dot(x, x, n));
}

// One head of one chunk: fills the samples.
class HeadProbe {
 public:
  HeadProbe(const MixerShape& shape, const MixerChunk& chunk, int64_t h, Samples& samples)
      : s_(shape),
        c_(chunk),
        h_(h),
        samples_(samples),
        k_(matrix_of(chunk.k, h * s_.K, c_.L, s_.K, s_.H * s_.K)),
        v_(matrix_of(chunk.v, h * s_.V, c_.L, s_.V, s_.H * s_.V)) {}

  void run() {
    reference::DocumentPlace place;
    for (int64_t i = -c_.lead; i < c_.L; ++i) {
      place.advance(c_.lead + i, c_.resets_at(i));
      if (i >= 0) token(i, place.start);
    }
    residual_probes();
    state_probes();
    inverse_probe(matrix_of(c_.T_zero, h_ * s_.C * s_.C, s_.C, s_.C, s_.C));
  }

 private:
  void add(Probe probe, double value) { samples_[static_cast<size_t>(probe)].push_back(value); }
  double at(const Values& values, int64_t i) const {
    return values[static_cast<size_t>(i * s_.H + h_)];
  }
  double gain(int64_t i) const { return at(c_.beta, i) * reference::dot(k_[i], k_[i], s_.K); }

  // |x| of a key or value of this head before any normalisation.
  double raw_norm(const Values& raw, const Values& conv, int64_t width, bool silu, int64_t i,
                  int64_t document_start) {
    const int64_t channels = s_.H * width;
    const reference::ConvInput<double> in{matrix_of(raw, 0, c_.lead + c_.L, channels, channels),
                                          {}};
    buffer_.resize(static_cast<size_t>(width));
    reference::conv_channels_forward(buffer_.data(), in,
                                     matrix_of(conv, 0, channels, kConvWidth, kConvWidth),
                                     h_ * width, width, c_.lead + i, document_start);
    for (double& x : buffer_) x = silu ? reference::silu_forward(x) : x;
    return norm_of(buffer_.data(), width);
  }

  void token(int64_t i, int64_t document_start) {
    const double g = at(c_.g, i);
    const bool silu = s_.rule.key != KeyMap::softmax;
    key_norms_.push_back(raw_norm(c_.k_raw, s_.k_conv, s_.K, silu, i, document_start));
    add(Probe::write_gain, gain(i));
    add(Probe::decay, std::exp(g));
    add(Probe::half_life, std::log(2.0) / std::abs(g));  // infinite for g = 0, of either sign
    add(Probe::key_norm, key_norms_.back());
    add(Probe::value_norm, raw_norm(c_.v_raw, s_.v_conv, s_.V, true, i, document_start));
    if (i == 0 || c_.resets_at(i)) return;
    const double norms = norm_of(k_[i], s_.K) * norm_of(k_[i - 1], s_.K);
    if (norms > 0) add(Probe::key_cosine, reference::dot(k_[i], k_[i - 1], s_.K) / norms);
  }

  // Kernels see v over the key norm s where the rule is stated for raw keys; s leads back.
  double value_unit(int64_t i) const {
    const double n = key_norms_[static_cast<size_t>(i)];
    return s_.rule.value == ValueMap::over_key_norm ? std::sqrt(n * n + s_.eps) : 1;
  }

  // Token by token from the state that entered the chunk to the one that leaves it. Behind the
  // write the residual is (1 - gain) times what it was.
  void residual_probes() {
    const int64_t size = s_.V * s_.K;
    state_.assign(c_.S_enter.begin() + h_ * size, c_.S_enter.begin() + (h_ + 1) * size);
    auto series = [&](const Values& values) {
      return reference::Series<double>{const_cast<double*>(values.data()) + h_, s_.H};
    };
    const reference::RecurrentHead<double> head{
        .q = k_,  // not read
        .k = k_,
        .v = v_,
        .beta = series(c_.beta),
        .g = series(c_.g),
        .reset = c_.reset.empty() ? nullptr : c_.reset.data() + c_.lead};
    buffer_.resize(static_cast<size_t>(s_.V));
    for (int64_t i = 0; i < c_.L; ++i) {
      reference::recurrent_step(head, i, state(), buffer_.data());
      const double before = norm_of(buffer_.data(), s_.V) * value_unit(i);
      add(Probe::residual_before, before);
      add(Probe::residual_after, std::abs(1 - gain(i)) * before);
    }
  }
  Matrix<double> state() { return {state_.data(), s_.V, s_.K, s_.K}; }

  void state_probes() {
    Values values(static_cast<size_t>(s_.K * s_.K), 0);
    const Matrix<double> gram{values.data(), s_.K, s_.K, s_.K};
    reference::add_atb(gram, state(), state());  // its eigenvalues are the sigma^2
    double trace = 0;
    for (int64_t j = 0; j < s_.K; ++j) trace += gram[j][j];
    add(Probe::state_norm, std::sqrt(trace));
    const double squares = reference::dot(values.data(), values.data(), s_.K * s_.K);
    if (trace != 0) add(Probe::state_rank, trace * trace / squares);
  }

  void inverse_probe(const Matrix<double>& inverse) {
    double largest = 0;
    for (int64_t i = 0; i < c_.L; ++i)
      for (int64_t j = 0; j < i; ++j)
        if (const double x = std::abs(inverse[i][j]); x > largest || std::isnan(x)) largest = x;
    add(Probe::inverse_max, largest);
  }

  const MixerShape& s_;
  const MixerChunk& c_;
  int64_t h_;
  Samples& samples_;
  Matrix<double> k_, v_;  // [L,K], [L,V]
  Values key_norms_, buffer_, state_;
};

}  // namespace

const char* name_of(Probe probe) {
  switch (probe) {
    case Probe::write_gain:
      return "write_gain";
    case Probe::decay:
      return "decay";
    case Probe::half_life:
      return "half_life";
    case Probe::key_norm:
      return "key_norm";
    case Probe::value_norm:
      return "value_norm";
    case Probe::key_cosine:
      return "key_cosine";
    case Probe::residual_before:
      return "residual_before";
    case Probe::residual_after:
      return "residual_after";
    case Probe::state_norm:
      return "state_norm";
    case Probe::state_rank:
      return "state_rank";
    case Probe::inverse_max:
      return "inverse_max";
  }
  return "?";
}

Quantiles quantiles_of(std::vector<double> sample) {
  Quantiles out;
  out.fill(std::numeric_limits<double>::quiet_NaN());
  if (sample.empty()) return out;
  for (double x : sample)
    if (std::isnan(x)) return out;
  std::sort(sample.begin(), sample.end());
  const auto last = static_cast<double>(sample.size() - 1);
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = sample[static_cast<size_t>(std::llround(kQuantiles[i] * last))];
  return out;
}

LayerProbe probe_mixer(const Context& context, int64_t layer, const MixerPrepForward& prep,
                       const DeltaScanForward& scan, int64_t tokens) {
  KLA_CHECK(!scan.S_enter.empty() && tokens <= prep.k_hat.dim(1), "not a training forward pass");
  const MixerShape shape(context, prep);
  std::vector<Samples> heads(static_cast<size_t>(shape.H));
  for (int64_t n : chosen_chunks(chunk_count(tokens, shape.C))) {
    const MixerChunk chunk(context, prep, scan, n, tokens);
    context.pool->run(shape.H, [&](int64_t h, int) {
      HeadProbe(shape, chunk, h, heads[static_cast<size_t>(h)]).run();
    });
  }
  LayerProbe out;
  out.layer = layer;
  for (size_t p = 0; p < kProbes; ++p) {
    Values all;
    for (const Samples& head : heads) {
      all.insert(all.end(), head[p].begin(), head[p].end());
      out.values[p].heads.push_back(quantiles_of(head[p]));
    }
    out.values[p].count = static_cast<int64_t>(all.size());
    out.values[p].all = quantiles_of(std::move(all));
  }
  return out;
}

}  // namespace kla
