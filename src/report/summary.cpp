#include "report/summary.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <set>

#include "report/scale.h"
#include "report/statistics.h"

namespace kla::report {
namespace {

constexpr int64_t kWarmUpSteps = 10;  // left out of the throughput

double parse_number(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  return end == text.c_str() ? kMissing : value;
}

double final_train_loss(const std::vector<TrainRow>& rows) {
  double sum = 0, tokens = 0;
  for (size_t i = rows.size(); i-- > 0;) {
    if (tokens > 0 && rows[i].tokens < 0.95 * rows.back().tokens) break;
    const double here = rows[i].tokens - (i > 0 ? rows[i - 1].tokens : 0);
    if (!std::isfinite(rows[i].loss) || here <= 0) continue;
    sum += rows[i].loss * here;
    tokens += here;
  }
  return tokens > 0 ? sum / tokens : kMissing;
}

double throughput(const std::vector<TrainRow>& rows) {
  std::vector<double> rates;
  for (const TrainRow& row : rows)
    if (row.step > kWarmUpSteps && std::isfinite(row.tok_s)) rates.push_back(row.tok_s);
  return median(rates);
}

// The time before the first row of a start is taken from that row's rate.
double wall_seconds(const std::vector<TrainRow>& rows) {
  double total = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const bool first = i == 0 || rows[i].resumed;
    const double tokens = rows[i].tokens - (i > 0 ? rows[i - 1].tokens : 0);
    const double seconds = first ? tokens / rows[i].tok_s : rows[i].time - rows[i - 1].time;
    if (std::isfinite(seconds)) total += seconds;
  }
  return rows.empty() ? kMissing : total;
}

// Of the rows with one key the one after the most training, then over the most targets, then the
// last written.
template <class Key>
std::vector<EvalRow> last_of_each(const std::vector<EvalRow>& rows, bool full, const Key& key) {
  std::map<decltype(key(rows.front())), EvalRow> last;
  for (const EvalRow& row : rows) {
    if ((row.protocol == "full") != full) continue;
    const auto [at, is_new] = last.try_emplace(key(row), row);
    const EvalRow& before = at->second;
    if (is_new || row.tokens > before.tokens ||
        (row.tokens == before.tokens && row.targets >= before.targets))
      at->second = row;
  }
  std::vector<EvalRow> out;
  for (const auto& [unused, row] : last) out.push_back(row);
  return out;
}

RunSummary summarize_run(const RunData& run) {
  RunSummary out;
  out.label = run.name;
  out.parameters = parse_number(value_of(run.record, "parameters.total"));
  if (!run.train.empty()) {
    out.tokens = run.train.back().tokens;
    out.steps = run.train.back().step;
    out.skipped = run.train.back().skipped;
  }
  out.train_loss = final_train_loss(run.train);
  out.tok_s = throughput(run.train);
  out.wall_s = wall_seconds(run.train);
  const double length = parse_number(value_of(run.config, "data.seq_len"));
  out.trained_length = length > 0 ? static_cast<int64_t>(length) : 0;
  out.final = last_of_each(run.evals, true, [](const EvalRow& row) { return row.length; });
  out.protocol = last_of_each(run.evals, false, [](const EvalRow& row) {
    return std::make_pair(row.protocol, row.length);
  });
  out.git = value_of(run.record, "program.git");
  out.state = value_of(run.status, "state");
  out.seed = value_of(run.config, "run.seed") + "/" + value_of(run.config, "data.shuffle_seed");
  out.rule = value_of(run.config, "model.step_size.rule");
  out.validation = value_of(run.record, "data.val");
  out.state_values = parse_number(value_of(run.record, "cost.state_values"));
  out.flops_per_token = parse_number(value_of(run.record, "cost.training_flops_per_token"));
  return out;
}

// Equal names get the directory beside them.
void make_labels_unique(const std::vector<RunData>& runs, std::vector<RunSummary>& summaries) {
  std::map<std::string, int> count;
  for (const RunData& run : runs) ++count[run.name];
  for (size_t i = 0; i < runs.size(); ++i)
    if (count[runs[i].name] > 1) summaries[i].label = runs[i].name + " (" + runs[i].directory + ")";
}

bool starts_with_any(const std::string& key, std::initializer_list<const char*> prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [&](const char* prefix) { return key.rfind(prefix, 0) == 0; });
}

// Everything that makes a run a different experiment rather than another seed of the same one.
std::string variant_key(const RunData& run) {
  if (!run.variant.empty()) return run.variant;
  if (run.config.empty()) return run.directory;
  std::string key;
  for (const auto& [name, value] : run.config)
    if (!starts_with_any(name, {"run.", "log.", "device.", "checkpoint.", "eval.", "guard.",
                                "data.shuffle_seed"}))
      key += name + "=" + value + "\n";
  return key;
}

// "kla_s1", "kla_s2" -> "kla"
std::string common_name(const std::vector<RunSummary>& runs, const std::vector<size_t>& members) {
  std::string name = runs[members.front()].label;
  for (size_t i : members) {
    const std::string& other = runs[i].label;
    const auto differ = std::mismatch(name.begin(), name.end(), other.begin(), other.end()).first;
    name.erase(differ, name.end());
  }
  if (members.size() == 1) return name;
  const auto ends_in_separator = [&] {
    return !name.empty() && std::string("_-. (").find(name.back()) != std::string::npos;
  };
  for (const char* suffix : {"seed", "s"})
    if (name.ends_with(std::string("_") + suffix) || name.ends_with(std::string("-") + suffix))
      name.resize(name.size() - std::string(suffix).size());
  while (ends_in_separator()) name.pop_back();
  return name.empty() ? runs[members.front()].label : name;
}

// House style: KLA blue, solid, circle; GDN green, dashed, square. The rest are told apart by
// colour-blind readers too: by lightness, dash and marker.
LineStyle take_style(const std::string& rule, std::set<size_t>& taken) {
  static const std::vector<LineStyle> kStyles = {
      {"#4E79A7", "", Marker::circle},          {"#59A14F", "7 3", Marker::square},
      {"#E15759", "9 3 2 3", Marker::triangle}, {"#B07AA1", "2 3", Marker::diamond},
      {"#F28E2B", "", Marker::square},          {"#4D4D4D", "7 3", Marker::circle},
      {"#9C755F", "9 3 2 3", Marker::diamond},  {"#17858B", "2 3", Marker::triangle},
      {"#8C564B", "", Marker::diamond},         {"#B8860B", "7 3", Marker::triangle},
      {"#D37295", "9 3 2 3", Marker::circle},   {"#1F3A5F", "2 3", Marker::square}};
  std::vector<size_t> preferred = {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 1};
  if (rule == "kla") preferred.insert(preferred.begin(), 0);
  if (rule == "gdn") preferred.insert(preferred.begin(), 1);
  for (size_t pick : preferred)
    if (taken.insert(pick).second) return kStyles[pick];
  return kStyles[preferred.front()];
}

std::vector<Variant> group_variants(const std::vector<RunData>& runs,
                                    std::vector<RunSummary>& summaries) {
  std::map<std::string, size_t> known;
  std::vector<Variant> variants;
  std::vector<std::set<std::string>> seeds;
  for (size_t i = 0; i < runs.size(); ++i) {
    const size_t v = known.try_emplace(variant_key(runs[i]), variants.size()).first->second;
    if (v == variants.size()) {
      variants.emplace_back();
      seeds.emplace_back();
    }
    summaries[i].variant = v;
    variants[v].runs.push_back(i);
    seeds[v].insert(summaries[i].seed);
  }
  std::set<size_t> taken;
  for (size_t v = 0; v < variants.size(); ++v) {
    const RunData& first = runs[variants[v].runs.front()];
    variants[v].seeds = seeds[v].size();
    variants[v].name =
        first.variant.empty() ? common_name(summaries, variants[v].runs) : first.variant;
    variants[v].style = take_style(summaries[variants[v].runs.front()].rule, taken);
  }
  return variants;
}

void find_differences(const std::vector<RunData>& runs, Summary& summary) {
  std::vector<std::string> keys;
  std::set<std::string> seen;
  for (const RunData& run : runs)
    for (const auto& [key, unused] : run.config)
      if (key != "run.name" && key != "run.dir" && seen.insert(key).second) keys.push_back(key);
  for (const std::string& key : keys) {
    ConfigRow row{key, {}};
    for (const RunData& run : runs) row.values.push_back(value_of(run.config, key));
    const bool equal = std::all_of(row.values.begin(), row.values.end(),
                                   [&](const std::string& v) { return v == row.values.front(); });
    if (equal)
      ++summary.equal_keys;
    else
      summary.differences.push_back(row);
  }
}

std::string csv_row(const Summary& summary, const RunSummary& run, const EvalRow& eval) {
  std::string row;
  for (const std::string& field :
       {csv_field(run.label), csv_field(summary.variants[run.variant].name),
        csv_number(run.parameters), csv_number(run.tokens), std::to_string(run.steps),
        csv_number(run.train_loss), eval.length > 0 ? std::to_string(eval.length) : std::string(),
        csv_number(eval.loss), csv_number(eval.low), csv_number(eval.high),
        csv_number(std::exp(eval.loss)), csv_number(eval.bits_per_byte),
        eval.length > 0 ? std::to_string(eval.targets) : std::string(), csv_number(run.tok_s),
        csv_number(run.wall_s), csv_number(run.skipped), csv_field(run.git)})
    row += (row.empty() ? "" : ",") + field;
  return row + "\r\n";
}

}  // namespace

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

std::string csv_number(double value) {
  if (!std::isfinite(value)) return "";
  char text[64];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

Summary summarize(const std::vector<RunData>& runs) {
  Summary summary;
  for (const RunData& run : runs) summary.runs.push_back(summarize_run(run));
  make_labels_unique(runs, summary.runs);
  summary.variants = group_variants(runs, summary.runs);
  find_differences(runs, summary);
  return summary;
}

const EvalRow* headline(const RunSummary& run) {
  for (const EvalRow& row : run.final)
    if (row.length == run.trained_length) return &row;
  return run.final.empty() ? nullptr : &run.final.front();
}

const EvalRow* result_of(const RunSummary& run) {
  const EvalRow* row = run.state == "finished" ? headline(run) : nullptr;
  return row && row->step >= run.steps && std::isfinite(row->loss) ? row : nullptr;
}

std::string to_csv(const Summary& summary) {
  std::string csv =
      "run,variant,parameters,tokens,steps,train_loss,context,val_loss,val_loss_low,val_loss_high,"
      "val_ppl,val_bits_per_byte,val_targets,tokens_per_second,wall_seconds,skipped_steps,git\r\n";
  const EvalRow none{0, kMissing, 0, kMissing, kMissing, kMissing, kMissing, 0, ""};
  for (const RunSummary& run : summary.runs) {
    for (const EvalRow& eval : run.final) csv += csv_row(summary, run, eval);
    if (run.final.empty()) csv += csv_row(summary, run, none);
  }
  return csv;
}

}  // namespace kla::report
