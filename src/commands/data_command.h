// `kla data prepare | check`: work on parsed arguments and return an exit code.
#pragma once

#include <string>
#include <vector>

namespace kla {

// Text to token shards by a config of configs/data/. Stops cleanly on SIGINT and SIGTERM.
int run_data_prepare(const std::string& config, const std::vector<std::string>& overrides);
// Reads every byte of prepared folders (a split, or the folder above its splits) and prints what is
// in them.
int run_data_check(const std::vector<std::string>& directories);

}  // namespace kla
