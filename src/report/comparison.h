// Which variant is better: means over seeds, differences to the base paired by seed, and a verdict
// in words that says no more than the numbers do.
//
// With L_vs the validation loss of variant v and seed s, and d_vs = L_vs - L_bs, the effect of v is
// the mean of d_vs over the n seeds both finished, +- t_{n-1} s_d / sqrt(n). Pairing takes out what
// a seed does to both: the order of the data and the initial values of the tensors they share.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "report/summary.h"
#include "report/sweep_reader.h"

namespace kla::report {

struct Effect {
  MeanInterval alone;  // 95 % for this comparison by itself
  std::optional<double>
      together;  // half-width with which all comparisons hold at 95 % (Bonferroni)

  bool separable() const;           // the interval excludes 0
  bool separable_together() const;  // also the wider one
};
Effect judge(const std::vector<double>& differences, size_t comparisons);
// "lower by 0.0210 ± 0.0060 nats, 3 seeds", "not separable with 3 seeds", ...
std::string in_words(const Effect& effect, size_t seeds, size_t comparisons);

struct VariantResult {
  std::string name;
  size_t variant = 0;  // in Summary::variants
  size_t runs = 0, finished = 0, diverged = 0;
  MeanInterval loss;                // over the seeds that finished
  std::vector<double> differences;  // one for each seed that it and the base finished
  Effect effect;                    // of the differences; empty for the base
  std::string verdict;
  double parameters = 0, state_values = 0, flops_per_token = 0;  // NaN: not recorded
};

struct Comparison {
  bool over_seeds() const;  // some variant has several runs: there is something to say

  std::string metric;                   // what is compared, with its unit and n
  size_t base = 0;                      // in `variants`
  size_t comparisons = 0;               // variants with an interval of their difference
  std::vector<VariantResult> variants;  // in the order of Summary::variants
  std::vector<std::string> notes;       // what was left out, and why
};

// `baseline`: name of a variant; empty or unknown: the first.
Comparison compare_variants(const std::vector<RunData>& runs, const Summary& summary,
                            const std::string& baseline);
Comparison compare_sweep(const SweepData&);

std::string comparison_statement(const Comparison&);  // how many comparisons, and what that means
std::string to_text(const Comparison&);               // a table for the terminal
std::string to_csv(const Comparison&);                // a row for each variant

}  // namespace kla::report
