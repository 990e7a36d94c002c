// The file of KLA_MATMUL_CHOICES: which of cuBLASLt's algorithms was the fastest for a product,
// timed once and then kept, because another choice means other bits. One line a product: what it
// depends on, a tab, and the library's 64 bytes in hexadecimal.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>

namespace kla::cuda {

using Algorithm = std::array<uint64_t, 8>;  // cublasLtMatmulAlgo_t

class MatmulChoices {
 public:
  explicit MatmulChoices(std::string path);  // Error{usage} with the line that is none
  std::optional<Algorithm> find(const std::string& product) const;
  void add(const std::string& product, const Algorithm&);  // appends to the file

  static MatmulChoices* of_environment();  // null if KLA_MATMUL_CHOICES is not set

 private:
  std::string path_;
  std::map<std::string, Algorithm> choices_;
};

}  // namespace kla::cuda
