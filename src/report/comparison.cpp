#include "report/comparison.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace kla::report {
namespace {

constexpr double kConfidence = 0.95;
constexpr int kDecimals = 4;  // of nats

std::string count_of(size_t n, const std::string& noun) {
  return std::to_string(n) + " " + noun + (n == 1 ? "" : "s");
}

bool excludes_zero(double mean, const std::optional<double>& half_width) {
  return half_width && std::abs(mean) > *half_width;
}

// The finished run of each seed; of two runs with one seed the first.
std::map<std::string, size_t> results_by_seed(const Summary& summary, const Variant& variant) {
  std::map<std::string, size_t> results;
  for (size_t i : variant.runs)
    if (result_of(summary.runs[i])) results.try_emplace(summary.runs[i].seed, i);
  return results;
}

bool same_targets(const RunSummary& a, const RunSummary& b) {
  const EvalRow *x = result_of(a), *y = result_of(b);
  return x->length == y->length && x->targets == y->targets && a.validation == b.validation;
}

VariantResult describe_variant(const std::vector<RunData>& runs, const Summary& summary, size_t v) {
  const Variant& variant = summary.variants[v];
  VariantResult result;
  result.name = variant.name;
  result.variant = v;
  result.runs = variant.runs.size();
  result.parameters = result.state_values = result.flops_per_token = kMissing;
  for (size_t i : variant.runs) {
    const RunSummary& run = summary.runs[i];
    result.diverged += state_of(runs[i].status) == RunState::diverged;
    if (std::isfinite(run.parameters)) result.parameters = run.parameters;
    if (std::isfinite(run.state_values)) result.state_values = run.state_values;
    if (std::isfinite(run.flops_per_token)) result.flops_per_token = run.flops_per_token;
  }
  std::vector<double> losses;
  for (const auto& [unused, i] : results_by_seed(summary, variant))
    losses.push_back(result_of(summary.runs[i])->loss);
  result.finished = losses.size();
  result.loss = mean_interval(losses, kConfidence);
  return result;
}

void pair_with_base(const Summary& summary, Comparison& comparison, VariantResult& result) {
  const size_t base_variant = comparison.variants[comparison.base].variant;
  const auto base = results_by_seed(summary, summary.variants[base_variant]);
  for (const auto& [seed, i] : results_by_seed(summary, summary.variants[result.variant])) {
    const auto partner = base.find(seed);
    if (partner == base.end()) continue;
    const RunSummary &here = summary.runs[i], &there = summary.runs[partner->second];
    if (same_targets(here, there))
      result.differences.push_back(result_of(here)->loss - result_of(there)->loss);
    else
      comparison.notes.push_back(here.label + " is not compared with " + there.label +
                                 ": they were validated on different targets");
  }
}

std::string metric_of(const Summary& summary) {
  for (const RunSummary& run : summary.runs)
    if (const EvalRow* row = result_of(run))
      return "validation loss after training, context " +
             format_context(static_cast<double>(row->length)) +
             ", nats per target, n = " + format_exact(row->targets) + " targets a run";
  return "validation loss after training";
}

std::string verdict_of(const VariantResult& result, size_t comparisons, bool is_base) {
  std::string text;
  if (is_base)
    text = "the base";
  else if (result.finished > 0)
    text = in_words(result.effect, result.differences.size(), comparisons);
  if (result.diverged > 0)
    text += (text.empty() ? "" : "; ") + std::to_string(result.diverged) + " of " +
            count_of(result.runs, "run") + " diverged";
  const size_t open = result.runs - std::min(result.runs, result.finished + result.diverged);
  if (open > 0)
    text += (text.empty() ? "" : "; ") + std::to_string(open) + " of " +
            count_of(result.runs, "run") + " not finished";
  return text;
}

std::string signed_fixed(double value) {
  return (value > 0 ? "+" : "") + format_fixed(value, kDecimals);
}

std::string with_interval(const std::string& mean, const std::optional<double>& half_width) {
  return half_width ? mean + " ± " + format_fixed(*half_width, kDecimals) : mean;
}

// Left-aligned columns; "±" is two bytes and one character.
std::string aligned(const std::vector<std::vector<std::string>>& rows) {
  const auto characters = [](const std::string& text) {
    return static_cast<size_t>(
        std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
  };
  std::vector<size_t> widths(rows.front().size());
  for (const auto& row : rows)
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], characters(row[c]));
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c)
      line += row[c] + std::string(widths[c] + 2 - characters(row[c]), ' ');
    out += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return out;
}

}  // namespace

bool Effect::separable() const {
  return excludes_zero(alone.mean, alone.half_width);
}
bool Effect::separable_together() const {
  return excludes_zero(alone.mean, together);
}

bool Comparison::over_seeds() const {
  return std::any_of(variants.begin(), variants.end(),
                     [](const VariantResult& v) { return v.runs > 1; });
}

Effect judge(const std::vector<double>& differences, size_t comparisons) {
  const auto m = static_cast<double>(std::max<size_t>(comparisons, 1));
  return {mean_interval(differences, kConfidence),
          mean_interval(differences, 1 - (1 - kConfidence) / m).half_width};
}

std::string in_words(const Effect& effect, size_t seeds, size_t comparisons) {
  if (!effect.alone.half_width)
    return "no verdict: needs 3 paired seeds, has " + std::to_string(seeds);
  if (!effect.separable()) return "not separable with " + count_of(seeds, "seed");
  std::string text = effect.alone.mean < 0 ? "lower by " : "higher by ";
  text += format_fixed(std::abs(effect.alone.mean), kDecimals) + " ± " +
          format_fixed(*effect.alone.half_width, kDecimals) + " nats, " + count_of(seeds, "seed");
  if (comparisons < 2) return text;
  return text + (effect.separable_together() ? ", also among all " : ", but not among all ") +
         count_of(comparisons, "comparison");
}

Comparison compare_variants(const std::vector<RunData>& runs, const Summary& summary,
                            const std::string& baseline) {
  Comparison comparison;
  comparison.metric = metric_of(summary);
  for (size_t v = 0; v < summary.variants.size(); ++v) {
    if (summary.variants[v].name == baseline) comparison.base = v;
    comparison.variants.push_back(describe_variant(runs, summary, v));
  }
  for (size_t v = 0; v < comparison.variants.size(); ++v) {
    if (v == comparison.base) continue;
    pair_with_base(summary, comparison, comparison.variants[v]);
    comparison.comparisons += comparison.variants[v].differences.size() >= 3;
  }
  for (size_t v = 0; v < comparison.variants.size(); ++v) {
    VariantResult& result = comparison.variants[v];
    result.effect = judge(result.differences, comparison.comparisons);
    result.verdict = verdict_of(result, comparison.comparisons, v == comparison.base);
  }
  return comparison;
}

Comparison compare_sweep(const SweepData& sweep) {
  return compare_variants(sweep.runs, summarize(sweep.runs), sweep.baseline);
}

std::string comparison_statement(const Comparison& comparison) {
  const size_t m = comparison.comparisons;
  const std::string base = comparison.variants[comparison.base].name;
  std::string text = "Differences are to " + base +
                     ", paired by seed, with 95 % Student t intervals over seeds; negative is "
                     "better.";
  if (m < 2) return text;
  return text + " " + std::to_string(m) +
         " comparisons with one base: were no variant different, about " +
         format_fixed((1 - kConfidence) * static_cast<double>(m), 2) +
         " of them would still be called separable. 'Also among all " + std::to_string(m) +
         "' marks those that hold with all intervals widened so that together they cover 95 % "
         "(Bonferroni).";
}

std::string to_text(const Comparison& comparison) {
  const std::string& base = comparison.variants[comparison.base].name;
  std::vector<std::vector<std::string>> rows = {
      {"variant", "seeds", "mean loss", "minus " + base, "verdict"}};
  for (const VariantResult& v : comparison.variants) {
    const bool is_base = &v == &comparison.variants[comparison.base];
    rows.push_back(
        {v.name, std::to_string(v.finished) + "/" + std::to_string(v.runs),
         with_interval(format_fixed(v.loss.mean, kDecimals), v.loss.half_width),
         is_base || v.differences.empty()
             ? "–"
             : with_interval(signed_fixed(v.effect.alone.mean), v.effect.alone.half_width),
         v.verdict});
  }
  std::string text = comparison.metric + "\n" + aligned(rows) + comparison_statement(comparison);
  for (const std::string& note : comparison.notes) text += "\n" + note;
  return text;
}

std::string to_csv(const Comparison& comparison) {
  std::string csv =
      "variant,runs,finished,diverged,val_loss,val_loss_half_width,paired_seeds,difference,"
      "difference_half_width,difference_half_width_together,comparisons,verdict,parameters,"
      "state_values,training_flops_per_token\r\n";
  for (const VariantResult& v : comparison.variants) {
    std::string row;
    for (const std::string& field :
         {csv_field(v.name), std::to_string(v.runs), std::to_string(v.finished),
          std::to_string(v.diverged), csv_number(v.loss.mean),
          csv_number(v.loss.half_width.value_or(kMissing)), std::to_string(v.differences.size()),
          csv_number(v.effect.alone.mean), csv_number(v.effect.alone.half_width.value_or(kMissing)),
          csv_number(v.effect.together.value_or(kMissing)), std::to_string(comparison.comparisons),
          csv_field(v.verdict), csv_number(v.parameters), csv_number(v.state_values),
          csv_number(v.flops_per_token)})
      row += (row.empty() ? "" : ",") + field;
    csv += row + "\r\n";
  }
  return csv;
}

}  // namespace kla::report
