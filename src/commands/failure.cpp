#include "commands/failure.h"

#include <cstdio>

#include "config/load.h"
#include "core/log.h"

namespace kla {

int print_failure(const Error& error, const std::string& who) {
  log::status_line("");
  if (dynamic_cast<const ConfigError*>(&error)) {  // located lines, complete as they are
    std::fprintf(stderr, "%s%s\n", who.c_str(), error.what());
    return static_cast<int>(error.code());
  }
  log::error(who + error.what());
  if (!error.remedy().empty()) std::fprintf(stderr, "  -> %s\n", error.remedy().c_str());
  return static_cast<int>(error.code());
}

}  // namespace kla
