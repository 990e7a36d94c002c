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

// What the probes read of one layer, on the host.
struct MixerRow {
  int64_t T, H, K, V, C;
  RuleInfo rule;
  double eps;
  Values k, v, beta, g;         // [T,H,K], [T,H,V], [T,H]: as the kernels see them
  Values k_raw, v_raw;          // [T,H*K], [T,H*V]: projections
  Values k_conv, v_conv;        // [H*K,4], [H*V,4]
  std::vector<uint8_t> reset;   // [T] or empty
  std::vector<int64_t> chunks;  // the chosen ones
  std::vector<Values> T_zero;   // of each [H,C,C]
  std::vector<Values> S_enter;  // of each [H,V,K]

  MixerRow(const Context& context, const MixerPrepForward& prep, const DeltaScanForward& scan,
           int64_t tokens)
      : T(tokens),
        H(prep.k_hat.dim(2)),
        K(prep.k_hat.dim(3)),
        V(prep.v_hat.dim(3)),
        C(prep.T_zero.dim(4)),
        rule(rule_info(prep.options.rule)),
        eps(prep.options.eps),
        k(first(context, prep.k_hat)),
        v(first(context, prep.v_hat)),
        beta(first(context, prep.beta)),
        g(first(context, prep.g)),
        k_raw(first(context, prep.in.k)),
        v_raw(first(context, prep.in.v)),
        k_conv(host_values(context, prep.w.k_conv)),
        v_conv(host_values(context, prep.w.v_conv)),
        chunks(chosen_chunks(chunk_count(T, C))) {
    KLA_CHECK(!scan.S_enter.empty() && T <= prep.k_hat.dim(1), "not a training forward pass");
    if (!prep.in.reset.empty()) reset = downloaded<uint8_t>(context, sequence_of(prep.in.reset, 0));
    for (int64_t n : chunks) {
      T_zero.push_back(host_values(context, sequence_of(sequence_of(prep.T_zero, 0), n)));
      S_enter.push_back(host_values(context, sequence_of(sequence_of(scan.S_enter, 0), n)));
    }
  }

  bool resets_at(int64_t t) const { return !reset.empty() && reset[static_cast<size_t>(t)] != 0; }

  // Rows of one head of a [T,H,width] tensor.
  Matrix<double> head_rows(const Values& values, int64_t h, int64_t width) const {
    return {const_cast<double*>(values.data()) + h * width, T, width, H * width};
  }
  // The matrix of one head in a [H,rows,cols] tensor.
  static Matrix<double> head_matrix(const Values& values, int64_t h, int64_t rows, int64_t cols) {
    return {const_cast<double*>(values.data()) + h * rows * cols, rows, cols, cols};
  }

 private:
  static Values first(const Context& context, const View& view) {
    return host_values(context, sequence_of(view, 0));
  }
};

double norm_of(const double* x, int64_t n) {
  return std::sqrt(reference::dot(x, x, n));
}

// One head of one sequence: fills the samples.
class HeadProbe {
 public:
  HeadProbe(const MixerRow& row, int64_t h, Samples& samples)
      : row_(row),
        h_(h),
        samples_(samples),
        k_(row.head_rows(row.k, h, row.K)),
        v_(row.head_rows(row.v, h, row.V)) {}

  void run() {
    reference::DocumentPlace place;
    for (int64_t t = 0; t < row_.T; ++t) {
      place.advance(t, row_.resets_at(t));
      token(t, place.start);
    }
    for (size_t i = 0; i < row_.chunks.size(); ++i) chunk(i);
  }

 private:
  void add(Probe probe, double value) { samples_[static_cast<size_t>(probe)].push_back(value); }
  double at(const Values& values, int64_t t) const {
    return values[static_cast<size_t>(t * row_.H + h_)];
  }
  double gain(int64_t t) const { return at(row_.beta, t) * reference::dot(k_[t], k_[t], row_.K); }

  // |x| of a key or value of this head before any normalisation.
  double raw_norm(const Values& raw, const Values& conv, int64_t width, bool silu, int64_t t,
                  int64_t document_start) {
    const int64_t channels = row_.H * width;
    const reference::ConvInput<double> in{
        {const_cast<double*>(raw.data()), row_.T, channels, channels}, {}};
    const Matrix<double> taps{const_cast<double*>(conv.data()), channels, kConvWidth, kConvWidth};
    buffer_.resize(static_cast<size_t>(width));
    reference::conv_channels_forward(buffer_.data(), in, taps, h_ * width, width, t,
                                     document_start);
    for (double& x : buffer_) x = silu ? reference::silu_forward(x) : x;
    return norm_of(buffer_.data(), width);
  }

  void token(int64_t t, int64_t document_start) {
    const double g = at(row_.g, t);
    const double key = raw_norm(row_.k_raw, row_.k_conv, row_.K, row_.rule.key != KeyMap::softmax,
                                t, document_start);
    add(Probe::write_gain, gain(t));
    add(Probe::decay, std::exp(g));
    add(Probe::half_life, std::log(2.0) / std::abs(g));  // infinite for g = 0, of either sign
    add(Probe::key_norm, key);
    add(Probe::value_norm, raw_norm(row_.v_raw, row_.v_conv, row_.V, true, t, document_start));
    if (t > 0 && !row_.resets_at(t)) {
      const double norms = norm_of(k_[t], row_.K) * norm_of(k_[t - 1], row_.K);
      if (norms > 0) add(Probe::key_cosine, reference::dot(k_[t], k_[t - 1], row_.K) / norms);
    }
    key_norms_.push_back(key);
  }

  // Kernels see v over the key norm s where the rule is stated for raw keys; s leads back.
  double value_unit(int64_t t) const {
    const double n = key_norms_[static_cast<size_t>(t)];
    return row_.rule.value == ValueMap::over_key_norm ? std::sqrt(n * n + row_.eps) : 1;
  }

  // Token by token from the state that entered the chunk. Behind the write the residual is
  // (1 - gain) times what it was.
  void chunk(size_t i) {
    const int64_t K = row_.K, V = row_.V, C = row_.C, start = row_.chunks[i] * C;
    const int64_t end = std::min(start + C, row_.T);
    Values state(row_.S_enter[i].begin() + h_ * V * K, row_.S_enter[i].begin() + (h_ + 1) * V * K);
    const Matrix<double> S{state.data(), V, K, K};
    auto series = [&](const Values& values) {
      return reference::Series<double>{const_cast<double*>(values.data()) + h_, row_.H};
    };
    const reference::RecurrentHead<double> head{
        .q = k_,  // not read
        .k = k_,
        .v = v_,
        .beta = series(row_.beta),
        .g = series(row_.g),
        .reset = row_.reset.empty() ? nullptr : row_.reset.data()};
    buffer_.resize(static_cast<size_t>(V));
    for (int64_t t = start; t < end; ++t) {
      reference::recurrent_step(head, t, S, buffer_.data());
      const double before = norm_of(buffer_.data(), V) * value_unit(t);
      add(Probe::residual_before, before);
      add(Probe::residual_after, std::abs(1 - gain(t)) * before);
    }
    state_probes(S);
    inverse_probe(MixerRow::head_matrix(row_.T_zero[i], h_, C, C), end - start);
  }

  void state_probes(const Matrix<double>& S) {
    gram_.assign(static_cast<size_t>(S.cols * S.cols), 0);
    const Matrix<double> gram{gram_.data(), S.cols, S.cols, S.cols};
    reference::add_atb(gram, S, S);  // S^T S: its eigenvalues are the squared singular values
    double trace = 0;
    for (int64_t j = 0; j < S.cols; ++j) trace += gram[j][j];
    add(Probe::state_norm, std::sqrt(trace));
    if (trace != 0)
      add(Probe::state_rank,
          trace * trace / reference::dot(gram_.data(), gram_.data(), S.cols * S.cols));
  }

  void inverse_probe(const Matrix<double>& inverse, int64_t L) {
    double largest = 0;
    for (int64_t i = 0; i < L; ++i)
      for (int64_t j = 0; j < i; ++j)
        if (const double x = std::abs(inverse[i][j]); !(x <= largest)) largest = x;  // NaN too
    add(Probe::inverse_max, largest);
  }

  const MixerRow& row_;
  int64_t h_;
  Samples& samples_;
  Matrix<double> k_, v_;  // [T,K], [T,V]
  Values key_norms_, buffer_, gram_;
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
  const MixerRow row(context, prep, scan, tokens);
  std::vector<Samples> heads(static_cast<size_t>(row.H));
  context.pool->run(
      row.H, [&](int64_t h, int) { HeadProbe(row, h, heads[static_cast<size_t>(h)]).run(); });
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
