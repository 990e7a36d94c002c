#include "kernels/cuda/matmul_choices.h"

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "core/error.h"

namespace kla::cuda {
namespace {

std::string to_text(const Algorithm& algorithm) {
  std::string text;
  char word[20];
  for (uint64_t bits : algorithm) {
    std::snprintf(word, sizeof word, " %016" PRIx64, bits);
    text += word;
  }
  return text.substr(1);
}

std::optional<Algorithm> from_text(const std::string& text) {
  std::istringstream words(text);
  Algorithm algorithm;
  for (uint64_t& bits : algorithm)
    if (!(words >> std::hex >> bits)) return {};
  return algorithm;
}

}  // namespace

MatmulChoices::MatmulChoices(std::string path) : path_(std::move(path)) {
  std::ifstream file(path_);  // none yet: every product will be timed
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    const size_t tab = line.find('\t');
    const auto algorithm =
        tab == std::string::npos ? std::nullopt : from_text(line.substr(tab + 1));
    if (!algorithm)
      throw Error(Exit::usage, path_ + ":" + std::to_string(number) + ": not a choice of algorithm",
                  "delete the line, or the file; products without a choice are timed again");
    choices_.emplace(line.substr(0, tab), *algorithm);  // the first one stays
  }
}

std::optional<Algorithm> MatmulChoices::find(const std::string& product) const {
  const auto found = choices_.find(product);
  if (found == choices_.end()) return {};
  return found->second;
}

void MatmulChoices::add(const std::string& product, const Algorithm& algorithm) {
  choices_.emplace(product, algorithm);
  std::ofstream file(path_, std::ios::app);
  file << product + '\t' + to_text(algorithm) + '\n' << std::flush;
  if (!file) throw_errno("cannot write " + path_, "check KLA_MATMUL_CHOICES");
}

MatmulChoices* MatmulChoices::of_environment() {
  const char* path = std::getenv("KLA_MATMUL_CHOICES");
  if (!path || !*path) return nullptr;
  static MatmulChoices choices(path);
  return &choices;
}

}  // namespace kla::cuda
