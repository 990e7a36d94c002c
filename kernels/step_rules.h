// Step-size rules: the axis of this project. The gated delta rule takes its step beta_t as data, so
// a rule is a scalar function of the raw step, the squared key norm and the position, plus a choice
// of how q, k and v are normalised. Each rule stands here once, with its derivatives, and serves
// every device.
//
// The kernels see the normalised form only (kernels/README.md, "Rescaling"): with s = sqrt(n +
// eps),
//   k_hat = k / s,   v_hat = v / s or v,   beta_hat = beta * s^2   (the write gain),
// so a rule returns beta_hat, not beta. To add a rule: write a struct like the ones below, append
// it to `Rules`, name it in YAML (model.step_size.rule).
#pragma once

#include <cmath>
#include <cstddef>
#include <string_view>
#include <tuple>
#include <type_traits>

#ifdef __CUDACC__
#define KLA_HD __host__ __device__
#else
#define KLA_HD
#endif

namespace kla {

enum class QueryMap { raw, unit, softmax };  // unit: q / sqrt(|q|^2 + 1e-6)
enum class KeyMap { unit, softmax };         // unit: k / s. softmax: no SiLU on q and k
enum class ValueMap { raw, over_key_norm };  // over_key_norm: v / s

inline constexpr double kUnboundedGain = -1;

struct RuleInfo {
  std::string_view name;
  std::string_view alias;     // the study's mode name, accepted in YAML; may be empty
  std::string_view equation;  // beta, in the notation of the file header
  std::string_view source;
  QueryMap query;
  KeyMap key;
  ValueMap value;
  bool uses_eta;     // reads the learned raw step eta = sigmoid(b)
  bool uses_scalar;  // reads the learned scalar c = softplus(theta), one per layer
  double max_gain;   // bound of beta |k|^2, or kUnboundedGain
};

template <class T>
struct StepInput {
  T eta;     // raw step in (0, 1)
  T n;       // |k|^2 after convolution and SiLU
  T eps;     // regulariser of the norm
  T t;       // position in its document or block, 1, 2, ...
  T scalar;  // c > 0
};

template <class T>
struct StepValue {
  T beta_hat;
  T d_eta, d_n, d_scalar;  // partial derivatives of beta_hat
};

namespace rules {

struct Gdn {
  static constexpr RuleInfo info{"gdn",
                                 "l2",
                                 "eta on unit keys",
                                 "Yang et al. 2024, Gated DeltaNet",
                                 QueryMap::unit,
                                 KeyMap::unit,
                                 ValueMap::raw,
                                 true,
                                 false,
                                 1};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>& x) {
    return {x.eta, 1, 0, 0};
  }
};

struct Kla {
  static constexpr RuleInfo info{"kla",
                                 "relaxed_kaczmarz_q_norm",
                                 "eta / (n + eps)",
                                 "Kaczmarz Linear Attention, arXiv 2605.08587",
                                 QueryMap::unit,
                                 KeyMap::unit,
                                 ValueMap::over_key_norm,
                                 true,
                                 false,
                                 1};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>& x) {
    return {x.eta, 1, 0, 0};
  }
};

struct RelaxedKaczmarz {
  static constexpr RuleInfo info{"relaxed_kaczmarz",
                                 "",
                                 "eta / (n + eps)",
                                 "arXiv 2605.08587",
                                 QueryMap::raw,
                                 KeyMap::unit,
                                 ValueMap::over_key_norm,
                                 true,
                                 false,
                                 1};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>& x) {
    return {x.eta, 1, 0, 0};
  }
};

struct Kaczmarz {
  static constexpr RuleInfo info{"kaczmarz",
                                 "",
                                 "1 / (n + eps)",
                                 "Kaczmarz 1937",
                                 QueryMap::raw,
                                 KeyMap::unit,
                                 ValueMap::over_key_norm,
                                 false,
                                 false,
                                 1};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>&) {
    return {1, 0, 0, 0};
  }
};

struct KNormOnly {
  static constexpr RuleInfo info{"k_norm_only",
                                 "",
                                 "1 / (n + eps)",
                                 "arXiv 2605.08587, ablation",
                                 QueryMap::raw,
                                 KeyMap::unit,
                                 ValueMap::over_key_norm,
                                 false,
                                 false,
                                 1};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>&) {
    return {1, 0, 0, 0};
  }
};

struct Longhorn {
  static constexpr RuleInfo info{"longhorn",
                                 "",
                                 "eta / (1 + eta n)",
                                 "Liu et al. 2024, Longhorn",
                                 QueryMap::raw,
                                 KeyMap::unit,
                                 ValueMap::over_key_norm,
                                 true,
                                 false,
                                 1};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>& x) {
    const T r = 1 / (1 + x.eta * x.n), s2 = x.n + x.eps;
    return {x.eta * s2 * r, s2 * r * r, x.eta * r * (1 - x.eta * s2 * r), 0};
  }
};

struct DeltaNet {
  static constexpr RuleInfo info{"deltanet",
                                 "softmax",
                                 "eta on soft-maxed keys",
                                 "arXiv 2605.08587, its DeltaNet baseline",
                                 QueryMap::softmax,
                                 KeyMap::softmax,
                                 ValueMap::raw,
                                 true,
                                 false,
                                 1};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>& x) {
    return {x.eta, 1, 0, 0};
  }
};

struct NoNorm {
  static constexpr RuleInfo info{"no_norm",
                                 "",
                                 "eta on raw keys",
                                 "arXiv 2605.08587, ablation",
                                 QueryMap::raw,
                                 KeyMap::unit,
                                 ValueMap::over_key_norm,
                                 true,
                                 false,
                                 kUnboundedGain};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>& x) {
    return {x.eta * (x.n + x.eps), x.n + x.eps, x.eta, 0};
  }
};

struct SeqOnly {
  static constexpr RuleInfo info{"seq_only",
                                 "",
                                 "1 / t",
                                 "arXiv 2605.08587, ablation",
                                 QueryMap::raw,
                                 KeyMap::unit,
                                 ValueMap::over_key_norm,
                                 false,
                                 false,
                                 kUnboundedGain};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>& x) {
    return {(x.n + x.eps) / x.t, 0, 1 / x.t, 0};
  }
};

struct LearnedScalar {
  static constexpr RuleInfo info{"learned_scalar",
                                 "",
                                 "eta / (c n + eps), c = softplus(theta)",
                                 "arXiv 2605.08587, ablation",
                                 QueryMap::raw,
                                 KeyMap::unit,
                                 ValueMap::over_key_norm,
                                 true,
                                 true,
                                 kUnboundedGain};
  template <class T>
  KLA_HD static StepValue<T> step(const StepInput<T>& x) {
    const T s2 = x.n + x.eps, r = 1 / (x.scalar * x.n + x.eps), beta = x.eta * s2 * r;
    return {beta, s2 * r, x.eta * r - beta * x.scalar * r, -beta * x.n * r};
  }
};

}  // namespace rules

using Rules = std::tuple<rules::Gdn, rules::Kla, rules::RelaxedKaczmarz, rules::Kaczmarz,
                         rules::KNormOnly, rules::Longhorn, rules::DeltaNet, rules::NoNorm,
                         rules::SeqOnly, rules::LearnedScalar>;

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

// Sequence factor: multiplies beta of every rule but seq_only; a constant for the gradient.
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
  if constexpr (std::is_same_v<Rule, rules::SeqOnly>) return y;
  const T f = seq_factor(factor, x.t);
  return {f * y.beta_hat, f * y.d_eta, f * y.d_n, f * y.d_scalar};
}

// Log-decay gates. dual_mamba: g = -exp(A) softplus(a + dt_bias); dual_logsigmoid: g = ln sigmoid(a
// + bias) / 16; single: g = ln clamp(1 - eta, 1e-6, 1), the decay gate's own projection is ignored.
enum class DecayGate { dual_mamba, dual_logsigmoid, single };

}  // namespace kla
