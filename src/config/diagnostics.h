// Config errors in the style of compilers: collected, so that one run shows many, and thrown
// together.
//   configs/kla.yaml:14:3: error: unknown key 'optim.leaning_rate'
//      14 |   leaning_rate: 1e-3
//         |   ^~~~~~~~~~~~
//   note: did you mean 'optim.lr'?
#pragma once

#include <string>
#include <vector>

#include "config/origin.h"

namespace kla {

class Diagnostics {
 public:
  static constexpr size_t kMost = 20;

  // `file` stands in for the place of an origin that is a built-in default.
  explicit Diagnostics(std::string file) : file_(std::move(file)) {}
  // Throws ConfigError at once when there are more than kMost.
  void error(const Origin& at, const std::string& message, const std::string& note = "");
  bool empty() const { return errors_.empty(); }
  [[noreturn]] void fail() const;  // ConfigError with all of them

 private:
  std::string file_;
  std::vector<std::string> errors_;
};

}  // namespace kla
