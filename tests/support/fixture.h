// Reads the fixtures that tools/oracle/ wrote with PyTorch in float64: inputs are drawn again here
// from the same counter-based streams, results are held as signed block sums (tools/oracle/
// fixture.py says why), so a fixture is a text file of some kilobytes whatever the shapes.
#pragma once

#include <cmath>
#include <cstdint>
#include <fstream>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"

namespace kla::testing {

// Number `index` of the stream `name`, in [0, 1): splitmix64 over FNV-1a of the name.
class FixtureStream {
 public:
  explicit FixtureStream(std::string_view name) {
    for (char c : name) key_ = (key_ ^ static_cast<uint8_t>(c)) * 0x100000001B3u;
  }
  double operator()(int64_t index) const {
    uint64_t z = key_ + (static_cast<uint64_t>(index) + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
  }

 private:
  uint64_t key_ = 0xCBF29CE484222325u;
};

inline double to_f32(double x) {
  return static_cast<double>(static_cast<float>(x));
}

// Root mean square of x - reference over that of the reference (of x - reference alone if the
// reference is zero). A NaN or infinity anywhere gives NaN or infinity, which passes no bound.
inline double relative_rms(const std::vector<double>& x, const std::vector<double>& reference) {
  KLA_CHECK(x.size() == reference.size(),
            std::to_string(x.size()) + " values against " + std::to_string(reference.size()));
  double difference = 0, norm = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    difference += (x[i] - reference[i]) * (x[i] - reference[i]);
    norm += reference[i] * reference[i];
  }
  if (norm > 0) return std::sqrt(difference / norm);
  return x.empty() ? 0 : std::sqrt(difference / static_cast<double>(x.size()));
}

inline constexpr int64_t kFixtureBlocks = 24;

struct FixtureTensor {
  std::vector<int64_t> shape;
  std::vector<double> values;
};

struct Fixture {
  struct Expected {
    int64_t size = 0;
    std::vector<double> block_sums;
  };

  std::string name;
  std::map<std::string, std::string> options;
  std::map<std::string, FixtureTensor> inputs;
  std::map<std::string, Expected> expected;

  bool has(const std::string& input_name) const { return inputs.contains(input_name); }
  const FixtureTensor& input(const std::string& input_name) const {
    KLA_CHECK(has(input_name), name + " has no input " + input_name);
    return inputs.at(input_name);
  }
  const std::string& option(const std::string& key) const {
    KLA_CHECK(options.contains(key), name + " has no option " + key);
    return options.at(key);
  }
  int64_t number(const std::string& key) const { return std::stoll(option(key)); }

  // Relative RMS error of `values` against what PyTorch found for `result`.
  double error(const std::string& result, const std::vector<double>& values) const {
    KLA_CHECK(expected.contains(result), name + " expects no " + result);
    const Expected& e = expected.at(result);
    const int64_t size = static_cast<int64_t>(values.size());
    KLA_CHECK(size == e.size, name + " " + result + ": " + std::to_string(size) + " values");
    const FixtureStream sign("sign");
    std::vector<double> sums(e.block_sums.size(), 0.0);
    for (int64_t i = 0; i < size; ++i) {
      const double x = values[static_cast<size_t>(i)];
      const int64_t block = i * static_cast<int64_t>(sums.size()) / size;
      sums[static_cast<size_t>(block)] += sign(i) < 0.5 ? -x : x;
    }
    return relative_rms(sums, e.block_sums);
  }
};

inline FixtureTensor draw_input(const std::string& stream, const std::string& kind, double low,
                                double high, std::vector<int64_t> shape) {
  int64_t size = 1;
  for (int64_t n : shape) size *= n;
  const FixtureStream number(stream), row_number(stream + "/rows");
  std::vector<double> values(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    const double u = number(i);
    double& x = values[static_cast<size_t>(i)];
    if (kind == "uniform") {
      x = low + (high - low) * u;
    } else if (kind == "integers") {
      x = std::floor(low + (high - low) * u);
    } else {
      KLA_CHECK(kind == "rows", kind);
      x = (2 * u - 1) * std::pow(10.0, low + (high - low) * row_number(i / shape.back() / 8));
    }
    x = to_f32(x);
  }
  return {std::move(shape), std::move(values)};
}

inline Fixture read_fixture(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw Error(Exit::io, path + ": cannot read", "run tools/oracle/write_fixtures.py");
  Fixture fixture;
  std::string word, key, kind;
  while (file >> word) {
    if (word == "fixture") {
      file >> fixture.name;
    } else if (word == "option") {
      file >> key >> fixture.options[key];
    } else if (word == "input") {
      double low = 0, high = 0;
      size_t rank = 0;
      file >> key >> kind >> low >> high >> rank;
      std::vector<int64_t> shape(rank);
      for (int64_t& n : shape) file >> n;
      fixture.inputs[key] = draw_input(fixture.name + "/" + key, kind, low, high, shape);
    } else {
      KLA_CHECK(word == "expect", path + ": " + word);
      Fixture::Expected e;
      file >> key >> e.size;
      e.block_sums.resize(static_cast<size_t>(std::min<int64_t>(e.size, kFixtureBlocks)));
      for (double& x : e.block_sums) file >> x;
      fixture.expected[key] = std::move(e);
    }
    KLA_CHECK(!file.fail(), path + ": " + word + " " + key);
  }
  return fixture;
}

}  // namespace kla::testing
