// Probes against an oracle that shares no code with them: the model runs once more on the reference
// device, and every quantity is computed there from its definition, token by token from the empty
// state, in plain double loops.
#include "eval/probes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "eval/mixer_tap.h"
#include "tests/model/model_fixture.h"
#include "tests/support/compare.h"

namespace kla::testing {
namespace {

using Samples = std::map<Probe, std::vector<Values>>;  // [head][value]

constexpr double kAgreement = 1e-4;

double silu(double x) {
  return x / (1 + std::exp(-x));
}

double length(const Values& x) {
  double sum = 0;
  for (double value : x) sum += value * value;
  return std::sqrt(sum);
}

double product(const Values& x, const Values& y) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

// One head of the first sequence of a layer on the reference device, from its definition.
class Oracle {
 public:
  Oracle(const MixerPrepForward& prep, int64_t h, int64_t tokens)
      : prep_(prep),
        h_(h),
        T_(tokens),
        H_(prep.k_hat.dim(2)),
        rule_(rule_info(prep.options.rule)) {}

  void run(Samples& samples) {
    const int64_t K = prep_.k_hat.dim(3), V = prep_.v_hat.dim(3);
    S_.assign(static_cast<size_t>(V), Values(static_cast<size_t>(K), 0));
    for (int64_t t = 0; t < T_; ++t) {
      token(t, samples);
      if ((t + 1) % kChunk == 0 || t + 1 == T_) chunk_end(t, samples);
    }
  }

 private:
  void put(Samples& samples, Probe probe, double value) const {
    samples[probe].resize(static_cast<size_t>(H_));
    samples[probe][static_cast<size_t>(h_)].push_back(value);
  }
  Values row(const View& view, int64_t t) const {
    const double* data = view.as<double>() + (t * H_ + h_) * view.cols();
    return {data, data + view.cols()};
  }
  bool resets(int64_t t) const {
    return !prep_.in.reset.empty() && prep_.in.reset.as<uint8_t>()[t] != 0;
  }
  // Convolution of this head's channels over the tokens of the document, SiLU.
  Values activated(const View& raw, const View& conv, int64_t width, bool with_silu,
                   int64_t t) const {
    Values out;
    for (int64_t c = h_ * width; c < (h_ + 1) * width; ++c) {
      double sum = 0;
      for (int64_t back = 0; back < 4 && back <= t; ++back) {
        sum += conv.as<double>()[c * 4 + 3 - back] * raw.as<double>()[(t - back) * raw.stride + c];
        if (resets(t - back)) break;
      }
      out.push_back(with_silu ? silu(sum) : sum);
    }
    return out;
  }

  void token(int64_t t, Samples& samples) {
    const int64_t K = prep_.k_hat.dim(3), V = prep_.v_hat.dim(3);
    const Values k = row(prep_.k_hat, t), v = row(prep_.v_hat, t);
    const double beta = prep_.beta.as<double>()[t * H_ + h_];
    const double g = prep_.g.as<double>()[t * H_ + h_];
    const bool softmax = rule_.key == KeyMap::softmax;
    const double key = length(activated(prep_.in.k, prep_.w.k_conv, K, !softmax, t));
    put(samples, Probe::write_gain, beta * product(k, k));
    put(samples, Probe::decay, std::exp(g));
    put(samples, Probe::half_life, std::log(0.5) / g);
    put(samples, Probe::key_norm, key);
    put(samples, Probe::value_norm, length(activated(prep_.in.v, prep_.w.v_conv, V, true, t)));
    if (t % kChunk > 0 && !resets(t)) {
      const Values before = row(prep_.k_hat, t - 1);
      put(samples, Probe::key_cosine, product(k, before) / (length(k) * length(before)));
    }

    const double decay = resets(t) ? 0 : std::exp(g);
    const bool divided = rule_.value == ValueMap::over_key_norm;
    const double unit = divided ? std::sqrt(key * key + prep_.options.eps) : 1;
    for (Values& s : S_)
      for (double& x : s) x *= decay;
    const Values error = residual(k, v);
    put(samples, Probe::residual_before, unit * length(error));
    for (size_t i = 0; i < S_.size(); ++i)
      for (size_t j = 0; j < k.size(); ++j) S_[i][j] += beta * error[i] * k[j];
    put(samples, Probe::residual_after, unit * length(residual(k, v)));
  }
  Values residual(const Values& k, Values v) const {
    for (size_t i = 0; i < v.size(); ++i) v[i] -= product(S_[i], k);
    return v;
  }

  void chunk_end(int64_t last, Samples& samples) const {
    double norm2 = 0, fourth = 0;  // sums of sigma^2 and sigma^4, from S S^T
    for (const Values& a : S_)
      for (const Values& b : S_) {
        const double entry = product(a, b);
        fourth += entry * entry;
        if (&a == &b) norm2 += entry;
      }
    put(samples, Probe::state_norm, std::sqrt(norm2));
    put(samples, Probe::state_rank, norm2 * norm2 / fourth);
    put(samples, Probe::inverse_max, largest_of_inverse(last / kChunk * kChunk, last));
  }
  // T = I - A T by back-substitution, column by column.
  double largest_of_inverse(int64_t first, int64_t last) const {
    double largest = 0;
    for (int64_t column = first; column <= last; ++column) {
      Values x(static_cast<size_t>(last - first + 1), 0);
      for (int64_t i = column; i <= last; ++i) {
        double& entry = x[static_cast<size_t>(i - first)];
        entry = i == column ? 1 : 0;
        const double beta = prep_.beta.as<double>()[i * H_ + h_];
        for (int64_t j = column; j < i; ++j)
          entry -= beta * product(row(prep_.k_hat, i), row(prep_.k_hat, j)) *
                   x[static_cast<size_t>(j - first)];
        if (i > column) largest = std::max(largest, std::abs(entry));
      }
    }
    return largest;
  }

  const MixerPrepForward& prep_;
  int64_t h_, T_, H_;
  const RuleInfo& rule_;
  std::vector<Values> S_;  // [V][K]
};

struct Shape {
  int64_t T = 150, tokens = 150;  // of which the probes look at
  bool resets = false;
  Recompute recompute = Recompute::none;
  Device device = Device::cpu;
};

void set_up(ModelOnDevice& model, const Shape& shape) {
  // Steps, decays and keys like those of a trained model rather than of a fresh one.
  const RandomStream random(11, "stir");
  for (int64_t i = 0; i < model.weights.master.size(); ++i)
    ModelOnDevice::set(model.weights.master, i,
                       static_cast<double>(static_cast<float>(
                           ModelOnDevice::at(model.weights.master, i) +
                           0.3 * (random.uniform(static_cast<uint64_t>(i)) - 0.5))));
  for (int64_t i = 0; i < model.B * model.T; ++i)
    model.reset.as<uint8_t>()[i] = i % model.T == 41 || i % model.T == 64 || i % model.T == 90;
  model.use_reset = shape.resets;
}

std::vector<LayerProbe> probes_on_device(const ModelConfig& config, const Shape& shape) {
  ModelOnDevice model(config, shape.device, 2, shape.T, shape.recompute);
  set_up(model, shape);
  std::vector<LayerProbe> probes;
  const MixerTap tap(
      model.context, config.num_hidden_layers,
      [&](int64_t layer, const MixerPrepForward& prep, const DeltaScanForward& scan) {
        probes.push_back(probe_mixer(model.context, layer, prep, scan, shape.tokens));
      });
  model.forward_backward();
  return probes;
}

std::vector<Samples> oracle_on_reference(const ModelConfig& config, const Shape& shape) {
  ModelOnDevice model(config, Device::reference, 2, shape.T);
  set_up(model, shape);
  std::vector<Samples> layers;
  const MixerTap tap(model.context, config.num_hidden_layers,
                     [&](int64_t, const MixerPrepForward& prep, const DeltaScanForward&) {
                       layers.emplace_back();
                       for (int64_t h = 0; h < config.num_heads; ++h)
                         Oracle(prep, h, shape.tokens).run(layers.back());
                     });
  model.forward_backward();
  return layers;
}

Quantiles quantiles_by_hand(Values sample) {
  std::sort(sample.begin(), sample.end());
  Quantiles out;
  const double n = static_cast<double>(sample.size());
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = sample[static_cast<size_t>(std::floor(kQuantiles[i] * (n - 1) + 0.5))];
  return out;
}

void expect_near(const Quantiles& found, const Quantiles& expected, const std::string& what) {
  for (size_t i = 0; i < found.size(); ++i)
    EXPECT_NEAR(found[i], expected[i], kAgreement * std::max(0.01, std::abs(expected[i])))
        << what << ", quantile " << kQuantiles[i];
}

void expect_agreement(const ModelConfig& config, const Shape& shape, const std::string& what) {
  const std::vector<LayerProbe> probes = probes_on_device(config, shape);
  const std::vector<Samples> oracle = oracle_on_reference(config, shape);
  ASSERT_EQ(probes.size(), oracle.size()) << what;
  for (size_t l = 0; l < probes.size(); ++l) {
    EXPECT_EQ(probes[l].layer, static_cast<int64_t>(l));
    ASSERT_EQ(oracle[l].size(), static_cast<size_t>(kProbes));
    for (const auto& [probe, heads] : oracle[l]) {
      const std::string where = what + ", layer " + std::to_string(l) + ", " + name_of(probe);
      const ProbeSummary& summary = probes[l][probe];
      Values all;
      ASSERT_EQ(summary.heads.size(), heads.size()) << where;
      for (size_t h = 0; h < heads.size(); ++h) {
        all.insert(all.end(), heads[h].begin(), heads[h].end());
        expect_near(summary.heads[h], quantiles_by_hand(heads[h]), where);
      }
      EXPECT_EQ(summary.count, static_cast<int64_t>(all.size())) << where;
      expect_near(summary.all, quantiles_by_hand(all), where);
    }
  }
}

TEST(Probes, AgreeWithTheDoubleReference) {
  for (const char* rule : {"kla", "gdn", "longhorn", "deltanet", "k_norm_only", "learned_scalar"})
    expect_agreement(small_config(rule), {}, rule);
}

TEST(Probes, AgreeAcrossDocumentsAndOnShortTexts) {
  expect_agreement(small_config(), {.resets = true}, "resets");
  for (int64_t tokens : {2, 30, 64, 65, 128})
    expect_agreement(small_config(), {.tokens = tokens}, std::to_string(tokens) + " tokens");
}

TEST(Probes, AgreeOnEveryDevice) {
  ModelConfig config = small_config();
  config.num_hidden_layers = 1;
  config.key_head_dim = config.value_head_dim = 16;
  for (Device device : devices_under_test())
    if (device != Device::cuda)  // the fixture writes into the device's memory
      expect_agreement(config, {.T = 70, .tokens = 70, .device = device}, name_of(device));
}

TEST(Probes, AreTheSameUnderRecomputation) {
  const auto numbers = [](Recompute recompute) {
    std::vector<Quantiles> all;
    for (const LayerProbe& probe : probes_on_device(small_config(), {.recompute = recompute}))
      for (const ProbeSummary& summary : probe.values) all.push_back(summary.all);
    return all;
  };
  const auto kept = numbers(Recompute::none);
  EXPECT_EQ(kept.size(), 2u * kProbes);
  EXPECT_EQ(std::set<Quantiles>(kept.begin(), kept.end()).size(), kept.size());  // no two alike
  EXPECT_EQ(numbers(Recompute::mixer), kept);
  EXPECT_EQ(numbers(Recompute::block), kept);
}

TEST(Probes, LookAtFewChunksOfALongText) {
  const int64_t T = kChunk * (2 * kProbeChunks + 3);
  const std::vector<LayerProbe> probes = probes_on_device(small_config(), {.T = T, .tokens = T});
  EXPECT_EQ(probes[0][Probe::write_gain].count, 2 * kProbeChunks * kChunk);
  EXPECT_EQ(probes[0][Probe::key_cosine].count, 2 * kProbeChunks * (kChunk - 1));
  EXPECT_EQ(probes[0][Probe::state_norm].count, 2 * kProbeChunks);
  EXPECT_EQ(probes[0][Probe::residual_before].count, 2 * kProbeChunks * kChunk);
}

TEST(Probes, QuantilesAreEntriesOfTheSample) {
  Values sample;
  for (int i = 0; i <= 100; ++i) sample.push_back((37 * i) % 101);
  EXPECT_EQ(quantiles_of(sample), (Quantiles{5, 25, 50, 75, 95, 100}));
  EXPECT_EQ(quantiles_of({7}), (Quantiles{7, 7, 7, 7, 7, 7}));
  EXPECT_TRUE(std::isnan(quantiles_of({})[0]));
  EXPECT_TRUE(std::isnan(quantiles_of({1, std::nan(""), 2})[5]));
}

}  // namespace
}  // namespace kla::testing
