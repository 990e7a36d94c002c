// The contract of step-size rules: of every registered rule, of the example in kernels/README.md,
// and that the check reports a rule which breaks it. What the contract means for whole mixers,
// models and runs is in mixer_gradient_test, chunk_test, language_model_test and
// train/step_rules_test, all of which walk through the registry too.
#include "kernels/step_rules.h"

#include <gtest/gtest.h>

#include "tests/support/mixer_case.h"
#include "tests/support/rule_contract.h"

namespace kla::rules {
#include "readme_step_rule.h"  // cut out of kernels/README.md by CMake
}

namespace kla::testing {
namespace {

using ::testing::PrintToString;

template <class Rule>
void expect_contract() {
  for (const std::string& line : RuleContract<Rule>().broken())
    ADD_FAILURE() << Rule::info.name << ": " << line;
}

TEST(StepRules, EveryRuleKeepsTheContract) {
  for (int rule = 0; rule < kRuleCount; ++rule)
    visit_rule(rule, [](auto r) { expect_contract<decltype(r)>(); });
}

TEST(StepRules, TheExampleOfTheReadmeKeepsTheContract) {
  EXPECT_EQ(rules::Damped::info.name, "damped");
  expect_contract<rules::Damped>();
}

TEST(StepRules, NamesAndAliasesAreUnique) {
  std::set<std::string_view> names;
  for (int rule = 0; rule < kRuleCount; ++rule) {
    const RuleInfo& info = rule_info(rule);
    EXPECT_TRUE(names.insert(info.name).second) << info.name;
    if (info.alias.empty()) continue;
    EXPECT_TRUE(names.insert(info.alias).second) << info.alias;
  }
}

// ---- Rules with something wrong ----------------------------------------------------------------

enum class Fault { none, d_eta, d_n, d_scalar, gain, overflow, hidden_eta, idle_scalar };

// beta = eta / (n + lambda + eps), right but for one fault.
template <Fault fault>
struct Planted {
  static constexpr RuleInfo info{
      .name = "planted",
      .equation = "eta / (n + lambda + eps)",
      .source = "a test",
      .uses_eta = fault != Fault::hidden_eta,
      .scalar = LearnedScalar::per_layer,
      .max_gain = fault == Fault::gain ? 0.9 : 1,
  };
  template <class T>
  static StepValue<T> step(const StepInput<T>& x) {
    const T lambda = fault == Fault::idle_scalar ? 1 : x.scalar;
    const T s2 = x.n + x.eps, r = 1 / (s2 + lambda), gain = x.eta * s2 * r;
    StepValue<T> y{gain, s2 * r, x.eta * lambda * r * r, -gain * r};
    if (fault == Fault::d_eta) y.d_eta *= T(1.0001);
    if (fault == Fault::d_n) y.d_n = -y.d_n;
    if (fault == Fault::d_scalar) y.d_scalar *= T(1.0001);
    if (fault == Fault::idle_scalar) y.d_scalar = 0;
    if (fault == Fault::overflow) y.beta_hat = x.eta * s2 * s2 / (s2 * (s2 + lambda));
    return y;
  }
};

template <Fault fault>
std::vector<std::string> broken() {
  return RuleContract<Planted<fault>>().broken();
}

void expect_one(const std::vector<std::string>& broken, const std::string& promise) {
  ASSERT_EQ(broken.size(), 1u) << PrintToString(broken);
  EXPECT_EQ(broken[0].rfind(promise, 0), 0u) << broken[0];
}

TEST(StepRules, APlantedFaultIsReported) {
  EXPECT_EQ(broken<Fault::none>(), std::vector<std::string>{}) << "control";
  expect_one(broken<Fault::d_eta>(), "d_eta is not the derivative");
  expect_one(broken<Fault::d_n>(), "d_n is not the derivative");
  expect_one(broken<Fault::d_scalar>(), "d_scalar is not the derivative");
  expect_one(broken<Fault::gain>(), "the write gain leaves [0, max_gain]");
  expect_one(broken<Fault::overflow>(), "not finite in f32");
  expect_one(broken<Fault::hidden_eta>(), "uses_eta is not what step() reads");
  expect_one(broken<Fault::idle_scalar>(), "scalar is not what step() reads");
}

// ---- Values ------------------------------------------------------------------------------------

// beta for raw keys as its source states it; eps where the study has it.
double beta_of(const std::string& rule, double eta, double n, double eps, double t, double lambda) {
  if (rule == "relaxed_kaczmarz" || rule == "kla") return eta / (n + eps);
  if (rule == "kaczmarz" || rule == "k_norm_only") return 1 / (n + eps);
  if (rule == "longhorn") return eta / (1 + eta * n);
  if (rule == "no_norm") return eta;
  if (rule == "seq_only") return 1 / t;
  if (rule == "learned_scalar") return eta / (lambda * n + eps);
  if (rule == "over_relaxed_kaczmarz") return 2 * eta / (n + eps);
  if (rule == "regularized_kaczmarz") return eta / (n + lambda + eps);
  return eta / (n + eps);  // gdn, deltanet, gdn_v_norm: eta on keys of length one
}

TEST(StepRules, ValuesAreThoseOfTheSources) {
  for (const char* name : {"gdn", "kla", "relaxed_kaczmarz", "kaczmarz", "k_norm_only", "longhorn",
                           "deltanet", "no_norm", "seq_only", "learned_scalar",
                           "over_relaxed_kaczmarz", "regularized_kaczmarz", "gdn_v_norm"}) {
    ASSERT_GE(find_rule(name), 0) << name;
    for (double eta : {0.1, 0.8})
      for (double n : {0.0, 0.3, 50.0}) {
        const StepInput<double> x{.eta = eta, .n = n, .eps = 1e-3, .t = 5, .scalar = 0.7};
        const double beta_hat =
            visit_rule(find_rule(name), [&](auto r) { return decltype(r)::step(x).beta_hat; });
        const double expected = beta_of(name, eta, n, 1e-3, 5, 0.7) * (n + 1e-3);
        EXPECT_NEAR(beta_hat, expected, 1e-14 * expected) << name << " n " << n;
      }
  }
}

TEST(StepRules, TheSequenceFactorLeavesARuleWithItsOwnScheduleAlone) {
  const StepInput<double> x{.eta = 0.5, .n = 2, .eps = 0, .t = 4, .scalar = 1};
  EXPECT_DOUBLE_EQ(write_gain<rules::SeqOnly>(x, SeqFactor::inv_t).beta_hat, 0.5);
  EXPECT_DOUBLE_EQ(write_gain<rules::Gdn>(x, SeqFactor::inv_t).beta_hat, 0.125);
  EXPECT_TRUE(rules::SeqOnly::info.own_schedule);
}

// ---- The gain that devices write with ----------------------------------------------------------

// Logits at both ends, keys from nothing to 1e15, lambda from nothing to 1e2.
TEST(StepRules, NoDeviceWritesWithMoreThanTheBound) {
  for (int rule = 0; rule < kRuleCount; ++rule) {
    const RuleInfo& info = rule_info(rule);
    if (info.max_gain == kUnboundedGain) continue;
    const bool learned = info.scalar != LearnedScalar::none;
    for (double key_scale : {0.0, 1e-15, 1.0, 1e15})
      for (double theta : learned ? std::vector{-80.0, 0.0, 100.0} : std::vector{0.0})
        for (Device device : all_devices()) {
          MixerCase c = draw_mixer({.B = 1, .T = 70, .H = 2, .K = 6, .V = 5}, {.rule = rule});
          for (double& x : c.inputs["k"]) x = to_f32(x * key_scale);
          for (double& x : c.inputs["b"]) x *= 20;
          if (c.has("theta"))
            for (double& x : c.inputs["theta"]) x = theta;
          const Results r = execute(device, [&](Lab& lab) {
            const MixerPrepForward prep = prep_forward(lab, c);
            lab.keep("k_hat", prep.k_hat);
            lab.keep("beta", prep.beta);
          });
          const Values &k = r.at("k_hat"), &beta = r.at("beta");
          for (size_t i = 0; i < beta.size(); ++i) {
            double gain = 0;
            for (size_t j = 0; j < 6; ++j) gain += beta[i] * k[6 * i + j] * k[6 * i + j];
            ASSERT_TRUE(gain >= 0 && gain <= info.max_gain * (1 + 1e-6))
                << info.name << " writes with " << gain << " on " << name_of(device);
          }
        }
  }
}

}  // namespace
}  // namespace kla::testing
