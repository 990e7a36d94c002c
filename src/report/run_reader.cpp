#include "report/run_reader.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "core/error.h"
#include "core/file.h"

namespace kla::report {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

// A finite number, or NaN: absent fields and the strings "nan" and "inf" that JSON rows carry.
double number_of(const Json& row, const char* key) {
  const auto found = row.find(key);
  return found != row.end() && found->is_number() ? found->get<double>() : kMissing;
}

int64_t integer_of(const Json& row, const char* key) {
  const double value = number_of(row, key);
  return std::isfinite(value) && std::abs(value) < 9e18 ? static_cast<int64_t>(value) : 0;
}

std::string string_of(const Json& row, const char* key) {
  const auto found = row.find(key);
  return found != row.end() && found->is_string() ? found->get<std::string>() : "";
}

// Calls `take` with every line that is a JSON object; returns how many were not.
template <class Take>
int64_t for_each_row(const std::string& text, const Take& take) {
  int64_t damaged = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t newline = text.find('\n', begin);
    const size_t end = newline == std::string::npos ? text.size() : newline;
    const Json row = Json::parse(text.begin() + static_cast<std::ptrdiff_t>(begin),
                                 text.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
    if (row.is_object())
      take(row);
    else if (newline != std::string::npos)  // a torn last line is ordinary
      ++damaged;
    begin = end + 1;
  }
  return damaged;
}

void read_train_row(const Json& row, RunData& run, bool& resumed) {
  const std::string kind = string_of(row, "t");
  if (kind == "event" && string_of(row, "what") == "resume") resumed = true;
  if (kind != "train") return;
  TrainRow out;
  out.step = integer_of(row, "step");
  out.tokens = number_of(row, "tokens");
  out.time = number_of(row, "time");
  out.loss = number_of(row, "loss");
  out.grad_norm = number_of(row, "grad_norm");
  out.lr = number_of(row, "lr");
  out.tok_s = number_of(row, "tok_s");
  out.skipped = number_of(row, "skipped");
  out.resumed = resumed;
  resumed = false;
  if (std::isfinite(out.tokens)) run.train.push_back(out);
}

void read_eval_row(const Json& row, RunData& run) {
  if (string_of(row, "t") != "eval") return;
  EvalRow out;
  out.step = integer_of(row, "step");
  out.tokens = number_of(row, "tokens");
  out.length = integer_of(row, "length");
  out.loss = number_of(row, "loss");
  out.low = number_of(row, "loss_low");
  out.high = number_of(row, "loss_high");
  out.bits_per_byte = number_of(row, "bpb");
  out.targets = integer_of(row, "n_tokens");
  if (const std::string protocol = string_of(row, "protocol"); !protocol.empty())
    out.protocol = protocol;
  if (out.length > 0) run.evals.push_back(out);
}

void read_probe_row(const Json& row, RunData& run) {
  if (string_of(row, "t") != "probe") return;
  ProbeRow out{.tokens = number_of(row, "tokens"), .layer = integer_of(row, "layer"), .values = {}};
  for (const auto& [name, value] : row.items()) {
    if (!value.is_object() || !value.contains("all") || !value["all"].is_array()) continue;
    std::vector<double> q;
    for (const Json& x : value["all"]) q.push_back(x.is_number() ? x.get<double>() : kMissing);
    if (q.size() == 6)
      out.values.push_back({name, number_of(value, "n"), q[0], q[1], q[2], q[3], q[4], q[5]});
  }
  if (std::isfinite(out.tokens)) run.probes.push_back(std::move(out));
}

// The text of a file of the run, "" with a note if it is not there.
std::string read_part(RunData& run, const std::string& file) {
  const std::string path = run.directory + "/" + file;
  if (!file_exists(path)) {
    run.notes.push_back(file + " is missing");
    return "";
  }
  return read_file(path);
}

void note_damage(RunData& run, const std::string& file, int64_t damaged) {
  if (damaged > 0)
    run.notes.push_back(file + ": " + std::to_string(damaged) + " unreadable lines left out");
}

std::string text_of(const OrderedJson& value) {
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_structured()) return value.dump();
  std::string joined;
  for (const auto& [key, child] : value.items()) {
    if (!joined.empty()) joined += value.is_object() ? ", " : " ";
    joined += value.is_object() ? key + " " + text_of(child) : text_of(child);
  }
  return joined;
}

// Objects become dotted keys, in the order of the file; an array of objects a numbered key each.
void flatten(const OrderedJson& value, const std::string& key, KeyValues& out) {
  const bool rows = value.is_array() && !value.empty() && value.front().is_object();
  if (!value.is_object() && !rows) {
    out.push_back({key, text_of(value)});
    return;
  }
  size_t row = 0;
  for (const auto& [name, child] : value.items()) {
    if (rows)
      out.push_back({key + "." + std::to_string(++row), text_of(child)});
    else
      flatten(child, key.empty() ? name : key + "." + name, out);
  }
}

KeyValues flat_object(const std::string& text) {
  KeyValues values;
  const OrderedJson object = OrderedJson::parse(text, nullptr, false);
  if (object.is_object()) flatten(object, "", values);
  return values;
}

KeyValues read_object(RunData& run, const std::string& file) {
  const std::string text = read_part(run, file);
  const KeyValues values = flat_object(text);
  if (values.empty() && !text.empty()) run.notes.push_back(file + " is not a JSON object");
  return values;
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t' || text.back() == '\r'))
    text.remove_suffix(1);
  return text;
}

// Up to a comment: a # at the start or after a blank, outside quotes.
std::string_view without_comment(std::string_view line) {
  char quote = 0;
  for (size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (quote) {
      if (c == '\\' && quote == '"') ++i;
      if (c == quote) quote = 0;
    } else if (c == '"' || c == '\'') {
      quote = c;
    } else if (c == '#' && (i == 0 || line[i - 1] == ' ')) {
      return line.substr(0, i);
    }
  }
  return line;
}

std::string unquoted(std::string_view value) {
  const bool quoted = value.size() >= 2 && (value.front() == '"' || value.front() == '\'') &&
                      value.back() == value.front();
  return std::string(quoted ? value.substr(1, value.size() - 2) : value);
}

std::string base_name(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path.substr(path.find_last_of('/') + 1);
}

}  // namespace

KeyValues parse_frozen_config(const std::string& text) {
  struct Level {
    size_t indent;
    std::string prefix;  // "section."
  };
  std::vector<Level> levels;
  KeyValues values;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line =
        without_comment(std::string_view(text).substr(begin, end - begin));
    begin = end + 1;
    const std::string_view body = trimmed(line);
    const size_t colon = body.find(':');
    if (body.empty() || colon == std::string_view::npos) continue;
    const size_t indent = line.find_first_not_of(" \t");
    while (!levels.empty() && levels.back().indent >= indent) levels.pop_back();
    const std::string key =
        (levels.empty() ? "" : levels.back().prefix) + unquoted(trimmed(body.substr(0, colon)));
    const std::string_view value = trimmed(body.substr(colon + 1));
    if (value.empty())
      levels.push_back({indent, key + "."});
    else
      values.push_back({key, unquoted(value)});
  }
  return values;
}

KeyValues read_flat_json(const std::string& path) {
  return file_exists(path) ? flat_object(read_file(path)) : KeyValues();
}

RunState state_of(const KeyValues& status) {
  const std::string state = value_of(status, "state");
  if (state == "finished") return RunState::finished;
  if (state == "failed")
    return value_of(status, "exit_code") == std::to_string(static_cast<int>(Exit::numerical))
               ? RunState::diverged
               : RunState::failed;
  return status.empty() ? RunState::fresh : RunState::unfinished;
}

const char* name_of(RunState state) {
  switch (state) {
    case RunState::fresh:
      return "not started";
    case RunState::unfinished:
      return "unfinished";
    case RunState::finished:
      return "finished";
    case RunState::diverged:
      return "diverged";
    case RunState::failed:
      return "failed";
  }
  return "?";
}

std::string value_of(const KeyValues& values, const std::string& key) {
  for (const auto& [name, value] : values)
    if (name == key) return value;
  return "";
}

RunData read_run(const std::string& directory) {
  RunData run;
  run.directory = directory;
  if (!file_exists(directory + "/metrics/train.jsonl") &&
      !file_exists(directory + "/metrics/eval.jsonl"))
    throw Error(Exit::usage,
                "'" + directory + "' holds no metrics/train.jsonl or metrics/eval.jsonl",
                "give the run directory that 'kla train' printed, such as runs/quickstart/kla");
  run.config_text = read_part(run, "config.yaml");
  run.config = parse_frozen_config(run.config_text);
  run.record = read_object(run, "run.json");
  run.status = read_object(run, "status.json");
  bool resumed = false;
  note_damage(run, "metrics/train.jsonl",
              for_each_row(read_part(run, "metrics/train.jsonl"),
                           [&](const Json& row) { read_train_row(row, run, resumed); }));
  note_damage(run, "metrics/eval.jsonl",
              for_each_row(read_part(run, "metrics/eval.jsonl"),
                           [&](const Json& row) { read_eval_row(row, run); }));
  if (file_exists(directory + "/metrics/probes.jsonl"))
    note_damage(run, "metrics/probes.jsonl",
                for_each_row(read_part(run, "metrics/probes.jsonl"),
                             [&](const Json& row) { read_probe_row(row, run); }));
  run.name = value_of(run.config, "run.name");
  if (run.name.empty()) run.name = base_name(directory);
  return run;
}

}  // namespace kla::report
