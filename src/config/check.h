// Checks that concern several keys at once, made after every value has been read. A check is left
// out when one of its keys already has an error, so that one mistake gives one message.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "config/diagnostics.h"
#include "config/load.h"
#include "config/schema.h"

namespace kla {

class CrossCheck {
 public:
  // `failed` holds the keys and sections that have an error.
  CrossCheck(const Sources& sources, const std::set<std::string>& failed, Diagnostics& diagnostics)
      : sources_(sources), failed_(failed), diagnostics_(diagnostics) {}
  // Points at the first of `paths` that is written somewhere.
  void error(const std::vector<std::string>& paths, const std::string& message,
             const std::string& note = "") const;

 private:
  bool failed(const std::string& path) const;
  const Sources& sources_;
  const std::set<std::string>& failed_;
  Diagnostics& diagnostics_;
};

void check(const Config& config, const CrossCheck& report);
void check(const PrepareConfig& config, const CrossCheck& report);
void check(const BenchConfig& config, const CrossCheck& report);
// Everything a run needs is there.
void check_required(const Schema& schema, const CrossCheck& report);

}  // namespace kla
