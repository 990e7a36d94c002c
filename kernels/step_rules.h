// Step-size rules: the axis of this project. The gated delta rule takes its step beta_t as data, so
// a rule is a scalar function of the raw step, the squared key norm, the position and perhaps one
// learned scalar, plus a choice of how q, k and v are normalised. Each rule stands here once, with
// its derivatives, and serves every device.
//
// The kernels see the normalised form only (kernels/README.md, "Rescaling"): with s = sqrt(n +
// eps),
//   k_hat = k / s,   v_hat = v / s or v,   beta_hat = beta * s^2   (the write gain),
// so a rule returns beta_hat, not beta. To add a rule: write a struct like the ones below and
// append it to `Rules`; YAML, tests and reports take it from there (kernels/README.md, "Adding a
// step rule").
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>
#include <string_view>
#include <tuple>

#ifdef __CUDACC__
#define KLA_HD __host__ __device__
#else
#define KLA_HD
#endif

namespace kla {

enum class QueryMap { raw, unit, softmax };        // unit: q / sqrt(|q|^2 + kUnitEps)
enum class KeyMap { unit, softmax };               // unit: k / s. softmax: no SiLU on q and k
enum class ValueMap { raw, unit, over_key_norm };  // v / sqrt(|v|^2 + kUnitEps); v / s
enum class LearnedScalar { none, per_layer, per_head };

inline constexpr double kUnitEps = 1e-6;
inline constexpr double kUnboundedGain = std::numeric_limits<double>::infinity();

// A rule whose beta is stated for raw keys and values, as most are, leaves the maps as they are.
struct RuleInfo {
  std::string_view name;      // in YAML: model.step_size.rule
  std::string_view equation;  // beta, in the notation of the file header
  std::string_view source;
  std::string_view alias = {};  // the study's mode name, accepted in YAML
  QueryMap query = QueryMap::raw;
  KeyMap key = KeyMap::unit;
  ValueMap value = ValueMap::over_key_norm;
  bool uses_eta = true;                        // reads the learned raw step eta = sigmoid(b)
  LearnedScalar scalar = LearnedScalar::none;  // reads lambda = softplus(theta)
  bool own_schedule = false;                   // no sequence factor: the rule depends on t itself
  double max_gain = kUnboundedGain;            // bound of beta |k|^2 before the sequence factor

  // S shrinks along k by 1 - gain: past 2 it grows.
  constexpr bool stable() const { return max_gain <= 2; }
};

template <class T>
struct StepInput {
  T eta;     // raw step in (0, 1)
  T n;       // |k|^2 after convolution and SiLU
  T eps;     // regulariser of the norm
  T t;       // position in its document or block, 1, 2, ...
  T scalar;  // lambda > 0
};

template <class T>
struct StepValue {
  T beta_hat;
  T d_eta, d_n, d_scalar;  // partial derivatives of beta_hat
};

namespace rules {

struct Gdn {
  static constexpr RuleInfo info{.name = "gdn",
                                 .equation = "eta on unit keys",
                                 .source = "Gated DeltaNet, Yang et al. 2024",
                                 .alias = "l2",
                                 .query = QueryMap::unit,
                                 .value = ValueMap::raw,
                                 .max_gain = 1};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>& x) {
    return {x.eta, 1, 0, 0};
  }
};

struct Kla {
  static constexpr RuleInfo info{.name = "kla",
                                 .equation = "eta / (n + eps)",
                                 .source = "Kaczmarz Linear Attention, arXiv 2605.08587",
                                 .alias = "relaxed_kaczmarz_q_norm",
                                 .query = QueryMap::unit,
                                 .max_gain = 1};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>& x) {
    return {x.eta, 1, 0, 0};
  }
};

struct RelaxedKaczmarz {
  static constexpr RuleInfo info{.name = "relaxed_kaczmarz",
                                 .equation = "eta / (n + eps)",
                                 .source = "arXiv 2605.08587",
                                 .max_gain = 1};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>& x) {
    return {x.eta, 1, 0, 0};
  }
};

struct Kaczmarz {
  static constexpr RuleInfo info{.name = "kaczmarz",
                                 .equation = "1 / (n + eps)",
                                 .source = "Kaczmarz 1937",
                                 .uses_eta = false,
                                 .max_gain = 1};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>&) {
    return {1, 0, 0, 0};
  }
};

struct KNormOnly {
  static constexpr RuleInfo info{.name = "k_norm_only",
                                 .equation = "1 / (n + eps)",
                                 .source = "arXiv 2605.08587, ablation",
                                 .uses_eta = false,
                                 .max_gain = 1};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>&) {
    return {1, 0, 0, 0};
  }
};

struct Longhorn {
  static constexpr RuleInfo info{.name = "longhorn",
                                 .equation = "eta / (1 + eta n)",
                                 .source = "Longhorn, Liu et al. 2024",
                                 .max_gain = 1};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>& x) {
    const T r = 1 / (1 + x.eta * x.n), s2 = x.n + x.eps;
    return {x.eta * s2 * r, s2 * r * r, x.eta * r * r * (1 - x.eta * x.eps), 0};
  }
};

struct DeltaNet {
  static constexpr RuleInfo info{.name = "deltanet",
                                 .equation = "eta on soft-maxed keys",
                                 .source = "arXiv 2605.08587, its DeltaNet baseline",
                                 .alias = "softmax",
                                 .query = QueryMap::softmax,
                                 .key = KeyMap::softmax,
                                 .value = ValueMap::raw,
                                 .max_gain = 1};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>& x) {
    return {x.eta, 1, 0, 0};
  }
};

struct NoNorm {
  static constexpr RuleInfo info{
      .name = "no_norm", .equation = "eta on raw keys", .source = "arXiv 2605.08587, ablation"};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>& x) {
    return {x.eta * (x.n + x.eps), x.n + x.eps, x.eta, 0};
  }
};

struct SeqOnly {
  static constexpr RuleInfo info{.name = "seq_only",
                                 .equation = "1 / t",
                                 .source = "arXiv 2605.08587, ablation",
                                 .uses_eta = false,
                                 .own_schedule = true};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>& x) {
    return {(x.n + x.eps) / x.t, 0, 1 / x.t, 0};
  }
};

struct LearnedNorm {
  static constexpr RuleInfo info{.name = "learned_scalar",
                                 .equation = "eta / (lambda n + eps)",
                                 .source = "arXiv 2605.08587, ablation",
                                 .scalar = LearnedScalar::per_layer};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>& x) {
    const T s2 = x.n + x.eps, r = 1 / (x.scalar * x.n + x.eps), gain = x.eta * s2 * r;
    return {gain, s2 * r, x.eta * x.eps * (1 - x.scalar) * r * r, -gain * x.n * r};
  }
};

// Relaxed projections converge for any factor in (0, 2); past 1 they overshoot.
struct OverRelaxedKaczmarz {
  static constexpr RuleInfo info{
      .name = "over_relaxed_kaczmarz",
      .equation = "2 eta / (n + eps)",
      .source = "Motzkin and Schoenberg 1954; Herman, Lent and Lutz 1978",
      .query = QueryMap::unit,
      .max_gain = 2};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>& x) {
    return {2 * x.eta, 2, 0, 0};
  }
};

// The regulariser of the normalised LMS filter, learned: keys shorter than sqrt(lambda) write
// less.
struct RegularizedKaczmarz {
  static constexpr RuleInfo info{.name = "regularized_kaczmarz",
                                 .equation = "eta / (n + lambda + eps)",
                                 .source = "regularised NLMS, e.g. Haykin, Adaptive Filter Theory",
                                 .query = QueryMap::unit,
                                 .scalar = LearnedScalar::per_head,
                                 .max_gain = 1};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>& x) {
    const T s2 = x.n + x.eps, r = 1 / (s2 + x.scalar), gain = x.eta * s2 * r;
    return {gain, s2 * r, x.eta * x.scalar * r * r, -gain * r};
  }
};

// KLA is GDN on v / |k|. The control: is it the key norm, or any normalisation of the value?
struct GdnUnitValue {
  static constexpr RuleInfo info{.name = "gdn_v_norm",
                                 .equation = "eta on unit keys and values",
                                 .source = "control of KLA = GDN on v / |k|",
                                 .query = QueryMap::unit,
                                 .value = ValueMap::unit,
                                 .max_gain = 1};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>& x) {
    return {x.eta, 1, 0, 0};
  }
};

}  // namespace rules

using Rules =
    std::tuple<rules::Gdn, rules::Kla, rules::RelaxedKaczmarz, rules::Kaczmarz, rules::KNormOnly,
               rules::Longhorn, rules::DeltaNet, rules::NoNorm, rules::SeqOnly, rules::LearnedNorm,
               rules::OverRelaxedKaczmarz, rules::RegularizedKaczmarz, rules::GdnUnitValue>;

inline constexpr int kRuleCount = static_cast<int>(std::tuple_size_v<Rules>);

// Calls visit(Rule{}) for the rule with this index; the index is what ops carry.
template <int I = 0, class Visit>
KLA_HD decltype(auto) visit_rule(int index, Visit&& visit) {
  if constexpr (I + 1 < kRuleCount) {
    if (index != I) return visit_rule<I + 1>(index, static_cast<Visit&&>(visit));
  }
  return visit(std::tuple_element_t<I, Rules>{});
}

inline const RuleInfo& rule_info(int index) {
  return visit_rule(index, [](auto rule) -> const RuleInfo& { return decltype(rule)::info; });
}

// Index by name or alias; -1 if there is none.
inline int find_rule(std::string_view name) {
  for (int i = 0; i < kRuleCount; ++i) {
    const RuleInfo& info = rule_info(i);
    if (name == info.name || (!info.alias.empty() && name == info.alias)) return i;
  }
  return -1;
}

// Sequence factor: multiplies beta, unless the rule has its own schedule; a constant for the
// gradient.
enum class SeqFactor { none, inv_t, inv_sqrt_t, inv_log_t };

template <class T>
KLA_HD T seq_factor(SeqFactor factor, T t) {
  switch (factor) {
    case SeqFactor::none:
      return 1;
    case SeqFactor::inv_t:
      return 1 / t;
    case SeqFactor::inv_sqrt_t:
      return 1 / std::sqrt(t);
    case SeqFactor::inv_log_t:
      return 1 / std::log(1 + t);
  }
  return 1;
}

// What the kernels call: the write gain beta_hat of a rule, with its sequence factor.
template <class Rule, class T>
KLA_HD StepValue<T> write_gain(const StepInput<T>& x, SeqFactor factor) {
  const StepValue<T> y = Rule::step(x);
  if constexpr (Rule::info.own_schedule) return y;
  const T f = seq_factor(factor, x.t);
  return {f * y.beta_hat, f * y.d_eta, f * y.d_n, f * y.d_scalar};
}

// Log-decay gates. dual_mamba: g = -exp(A) softplus(a + dt_bias); dual_logsigmoid: g = ln sigmoid(a
// + bias) / 16; single: g = ln clamp(1 - eta, 1e-6, 1), the decay gate's own projection is ignored.
enum class DecayGate { dual_mamba, dual_logsigmoid, single };

}  // namespace kla
