// `kla config check | show | explain`: work on parsed arguments and return an exit code. Each file
// is a training, prepare, bench or sweep config, told apart by its top-level keys.
#pragma once

#include <string>
#include <vector>

namespace kla {

// Loads each file; prints "FILE: ok" or every error. Exit code 0 or 2.
int run_config_check(const std::vector<std::string>& files);
// Prints the resolved config, defaults filled, with where each value came from.
int run_config_show(const std::string& file, const std::vector<std::string>& overrides);
// Prints the schema entry of a key or section and, with a file, the value and what set it.
int run_config_explain(const std::string& key, const std::string& file = "",
                       const std::vector<std::string>& overrides = {});

}  // namespace kla
