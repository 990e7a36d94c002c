// What the page says about runs in numbers: one summary a run, runs grouped into variants (equal
// but for the seed), and the keys in which their configs differ.
#pragma once

#include <string>
#include <vector>

#include "report/run_reader.h"
#include "report/svg.h"

namespace kla::report {

struct RunSummary {
  std::string label;  // run.name, made unique
  size_t variant = 0;
  double parameters = 0;  // NaN: not recorded
  double tokens = 0;      // trained on
  int64_t steps = 0;
  double train_loss = 0;  // mean over the last 5 % of the tokens
  double tok_s = 0;       // median of the logged rates
  double wall_s = 0;      // from the first row to the last, without the gaps before a resume
  double skipped = 0;
  int64_t trained_length = 0;     // data.seq_len; 0: not recorded
  std::vector<EvalRow> final;     // every target once, the last one of each context length
  std::vector<EvalRow> protocol;  // other protocols, the last one of each
  std::string git, state;
  std::string seed;            // run.seed and data.shuffle_seed
  std::string rule;            // model.step_size.rule
  std::string validation;      // identity of the validation data
  double state_values = 0;     // of the recurrent state, a sequence; NaN: not recorded
  double flops_per_token = 0;  // of training; NaN: not recorded
};

struct Variant {
  std::string name;
  std::vector<size_t> runs;
  size_t seeds = 0;  // distinct
  LineStyle style;
};

struct ConfigRow {
  std::string key;
  std::vector<std::string> values;  // one a run, "" where the key is absent
};

struct Summary {
  std::vector<RunSummary> runs;
  std::vector<Variant> variants;
  std::vector<ConfigRow> differences;
  size_t equal_keys = 0;
};

Summary summarize(const std::vector<RunData>& runs);

// The evaluation at the context length the run was trained with, else at its shortest one; null if
// there is none.
const EvalRow* headline(const RunSummary& run);

// The same of a run that is finished, after its last step: what runs are compared by; else null.
const EvalRow* result_of(const RunSummary& run);

// "a,b" or "a ""b"" c" as a field of CSV; a number with 9 digits, empty if it is not finite.
std::string csv_field(const std::string& text);
std::string csv_number(double value);

// RFC 4180: a row for each run and context length, and one for a run without evaluation.
std::string to_csv(const Summary& summary);

}  // namespace kla::report
