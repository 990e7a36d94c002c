// What the report knows of a sweep: the record `kla sweep` wrote of what was asked for, and the
// run directories beside it, which say what happened.
#pragma once

#include <string>
#include <vector>

#include "report/run_reader.h"

namespace kla::report {

inline constexpr const char* kSweepRecord = "sweep.yaml";
inline constexpr const char* kReferences = "references.csv";

// A published difference between two step-size rules, for reading beside ours.
struct Reference {
  std::string rule, base;
  double difference = 0;  // of the loss, rule minus base, nats
  std::string measures;   // what exactly was measured, on how much
};

// Several runs to report on together.
struct SweepData {
  std::string name;           // empty: runs that were named one by one
  std::string baseline;       // variant to compare with; empty: the first
  std::vector<RunData> runs;  // every one that was asked for, started or not
  std::vector<Reference> references;
};

bool is_sweep(const std::string& directory);
SweepData read_sweep(const std::string& directory);  // Error{data|io}

// Lines "rule,base,difference,measures" below a head; the last field takes the rest of its line,
// in quotes or not.
// Error{data} naming file and line.
std::vector<Reference> parse_references(const std::string& text, const std::string& file);

}  // namespace kla::report
