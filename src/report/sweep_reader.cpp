#include "report/sweep_reader.h"

#include <cmath>
#include <cstdlib>
#include <sstream>

#include "core/error.h"
#include "core/file.h"

namespace kla::report {
namespace {

bool has_metrics(const std::string& directory) {
  return file_exists(directory + "/metrics/train.jsonl") ||
         file_exists(directory + "/metrics/eval.jsonl");
}

RunData read_planned(const std::string& directory, const std::string& name) {
  if (has_metrics(directory)) return read_run(directory);
  RunData run;
  run.name = name;
  run.directory = directory;
  run.status = read_flat_json(directory + "/status.json");
  run.notes.push_back("no metrics: it was not started, or failed before its first step");
  return run;
}

}  // namespace

bool is_sweep(const std::string& directory) {
  return file_exists(directory + "/" + kSweepRecord);
}

SweepData read_sweep(const std::string& directory) {
  const std::string record = directory + "/" + kSweepRecord;
  SweepData sweep;
  const std::string prefix = "runs.", suffix = ".variant";
  for (const auto& [key, value] : parse_frozen_config(read_file(record, 1 << 24))) {
    if (key == "name") sweep.name = value;
    if (key == "baseline") sweep.baseline = value;
    if (!key.starts_with(prefix) || !key.ends_with(suffix)) continue;
    const std::string name = key.substr(prefix.size(), key.size() - prefix.size() - suffix.size());
    sweep.runs.push_back(read_planned(directory + "/" + name, name));
    sweep.runs.back().variant = value;
  }
  if (sweep.runs.empty())
    throw Error(Exit::data, "'" + record + "' names no runs",
                "'kla sweep run' with the sweep file writes it anew");
  const std::string references = directory + "/" + kReferences;
  if (file_exists(references))
    sweep.references = parse_references(read_file(references, 1 << 20), references);
  return sweep;
}

std::vector<Reference> parse_references(const std::string& text, const std::string& file) {
  std::vector<Reference> references;
  std::istringstream lines(text);
  int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (++number == 1 || line.empty()) continue;
    std::istringstream fields(line);
    Reference reference;
    std::string difference;
    const bool complete =
        std::getline(fields, reference.rule, ',') && std::getline(fields, reference.base, ',') &&
        std::getline(fields, difference, ',') && std::getline(fields, reference.measures);
    if (std::string& m = reference.measures; m.size() > 1 && m.front() == '"' && m.back() == '"')
      m = m.substr(1, m.size() - 2);
    char* end = nullptr;
    reference.difference = std::strtod(difference.c_str(), &end);
    if (!complete || difference.empty() || *end != '\0' || !std::isfinite(reference.difference))
      throw Error(Exit::data,
                  "'" + file + "', line " + std::to_string(number) +
                      " is not 'rule,base,difference,measures'",
                  "differences are numbers of nats");
    references.push_back(reference);
  }
  return references;
}

}  // namespace kla::report
