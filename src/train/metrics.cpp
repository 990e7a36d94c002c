#include "train/metrics.h"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "core/error.h"

namespace kla {
namespace {

using Json = nlohmann::ordered_json;

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

Json number(double value) {  // JSON has no NaN and no infinity
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  return value;
}

Json to_json(const EvalRow& r) {
  Json row = {{"t", "eval"},
              {"step", r.step},
              {"tokens", r.tokens},
              {"time", now()},
              {"split", "val"},
              {"source", r.source},
              {"protocol", r.protocol},
              {"length", r.length},
              {"loss", number(r.loss)},
              {"ppl", number(std::exp(r.loss))},
              {"n_tokens", r.n_tokens}};
  if (!std::isnan(r.loss_low)) {
    row["loss_low"] = number(r.loss_low);
    row["loss_high"] = number(r.loss_high);
  }
  if (r.n_bytes > 0) {
    row["n_bytes"] = r.n_bytes;
    row["bpb"] = number(r.loss * static_cast<double>(r.n_tokens) /
                        (static_cast<double>(r.n_bytes) * std::log(2.0)));
  }
  row["seconds"] = number(r.seconds);
  return row;
}

Json to_json(const Quantiles& quantiles) {
  Json values = Json::array();
  for (double x : quantiles) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.6g", x);
    values.push_back(number(std::strtod(text, nullptr)));
  }
  return values;
}

Json to_json(const ProbeRow& r) {
  Json row = {{"t", "probe"},  {"step", r.step},         {"tokens", r.tokens},
              {"time", now()}, {"layer", r.probe.layer}, {"quantiles", kQuantiles}};
  for (int p = 0; p < kProbes; ++p) {
    const ProbeSummary& summary = r.probe[static_cast<Probe>(p)];
    Json heads = Json::array();
    for (const Quantiles& head : summary.heads) heads.push_back(to_json(head));
    row[name_of(static_cast<Probe>(p))] = {
        {"n", summary.count}, {"all", to_json(summary.all)}, {"heads", heads}};
  }
  return row;
}

// The step of a line, or nothing if it is not a row.
std::optional<int64_t> step_of(const std::string& line) {
  const Json row = Json::parse(line, nullptr, false);
  if (!row.is_object() || !row.contains("step") || !row["step"].is_number_integer())
    return std::nullopt;
  return row["step"].get<int64_t>();
}

// Keeps the rows of steps up to `step`; the others go to superseded.jsonl, a torn line nowhere.
void cut(const std::string& directory, const std::string& name, int64_t step) {
  const std::string path = directory + "/" + name;
  if (!file_exists(path)) return;
  const std::string content = read_file(path);
  std::string kept, superseded;
  size_t begin = 0;
  for (size_t end; (end = content.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const std::string line = content.substr(begin, end - begin + 1);
    if (const auto row_step = step_of(line)) (*row_step <= step ? kept : superseded) += line;
  }
  if (kept == content) return;
  if (!superseded.empty()) {
    File file = File::append(directory + "/superseded.jsonl");
    file.write(superseded);
    file.sync();
    file.close();
  }
  write_file_atomic(path, kept);
}

std::string csv_line(const Json& row) {
  std::ostringstream line;
  const char* separator = "";
  for (const char* key :
       {"step", "tokens", "time", "loss", "grad_norm", "lr", "tok_s", "step_s", "skipped"}) {
    const Json value = row.value(key, Json(""));
    line << separator << (value.is_string() ? value.get<std::string>() : value.dump());
    separator = ",";
  }
  line << "\r\n";
  return line.str();
}

void rebuild_csv(const std::string& directory) {
  std::string csv = "step,tokens,time,loss,grad_norm,lr,tok_s,step_s,skipped\r\n";
  const std::string source = directory + "/train.jsonl";
  std::istringstream lines(file_exists(source) ? read_file(source) : "");
  for (std::string line; std::getline(lines, line);) {
    const Json row = Json::parse(line, nullptr, false);
    if (row.is_object() && row.value("t", Json()) == "train") csv += csv_line(row);
  }
  write_file_atomic(directory + "/train.csv", csv);
}

void append(File& file, const Json& row) {
  if (!file.is_open()) return;
  file.write(row.dump(-1, ' ', true, Json::error_handler_t::replace) + "\n");
}

}  // namespace

MetricsWriter::MetricsWriter(const std::string& run_directory, int64_t step, bool csv)
    : directory_(run_directory + "/metrics"), csv_(csv) {
  make_directories(directory_);
  cut(directory_, "train.jsonl", step);
  cut(directory_, "eval.jsonl", step);
  cut(directory_, "probes.jsonl", step);
  train_ = File::append(directory_ + "/train.jsonl");
  eval_ = File::append(directory_ + "/eval.jsonl");
  if (csv_) {
    rebuild_csv(directory_);
    csv_file_ = File::append(directory_ + "/train.csv");
  }
}

void MetricsWriter::write(const TrainRow& r) {
  const Json row = {
      {"t", "train"},        {"step", r.step},           {"tokens", r.tokens},
      {"time", now()},       {"loss", number(r.loss)},   {"grad_norm", number(r.grad_norm)},
      {"lr", number(r.lr)},  {"tok_s", number(r.tok_s)}, {"step_s", number(r.step_s)},
      {"skipped", r.skipped}};
  append(train_, row);
  if (csv_) csv_file_.write(csv_line(row));
}

void MetricsWriter::write(const EvalRow& row) {
  append(eval_, to_json(row));
}

void MetricsWriter::write(const ProbeRow& row) {
  if (!train_.is_open()) return;
  if (!probes_.is_open()) probes_ = File::append(directory_ + "/probes.jsonl");
  append(probes_, to_json(row));
}

void MetricsWriter::write(const EventRow& r) {
  append(
      train_,
      {{"t", "event"}, {"step", r.step}, {"time", now()}, {"what", r.what}, {"detail", r.detail}});
}

void MetricsWriter::sync() {
  if (!train_.is_open()) return;
  train_.sync();
  eval_.sync();
  if (probes_.is_open()) probes_.sync();
}

void append_eval_row(const std::string& run_directory, const EvalRow& row) {
  File file = File::append(run_directory + "/metrics/eval.jsonl");
  char last = '\n';
  if (const int64_t size = file.size(); size > 0) file.read_at(&last, 1, size - 1);
  if (last != '\n') file.write("\n");  // the torn line stays alone
  append(file, to_json(row));
}

}  // namespace kla
