// The rows of a run's metrics as a resumed run must reproduce them: without the fields that a clock
// or the memory of the machine decides, and without event rows.
#pragma once

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "core/file.h"

namespace kla::testing {

inline std::vector<std::string> metrics_rows(const std::string& run, const std::string& file) {
  std::vector<std::string> rows;
  const std::string path = run + "/metrics/" + file;
  std::istringstream lines(file_exists(path) ? read_file(path) : "");
  for (std::string line; std::getline(lines, line);) {
    nlohmann::json row = nlohmann::json::parse(line);
    if (row.at("t") == "event") continue;
    for (const char* clock : {"time", "tok_s", "step_s", "seconds"}) row.erase(clock);
    rows.push_back(row.dump());
  }
  return rows;
}

inline std::vector<std::string> metrics_rows(const std::string& run) {
  std::vector<std::string> rows = metrics_rows(run, "train.jsonl");
  for (const char* file : {"eval.jsonl", "probes.jsonl"})
    for (const std::string& row : metrics_rows(run, file)) rows.push_back(row);
  return rows;
}

}  // namespace kla::testing
