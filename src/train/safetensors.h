// safetensors files (FORMATS 7.1): an 8-byte length, a JSON header, then the tensors, packed. The
// writer streams straight from memory and hashes on the way; the reader trusts nothing: every rule
// of the format is checked before any tensor is read, and shapes are compared before memory is
// touched.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/view.h"

namespace kla {

struct NamedView {
  std::string name;
  View view;  // dense
};

struct WrittenFile {
  int64_t bytes = 0;
  std::string xxh3_128;
};

// Creates `path` (it must not exist), writes, fsyncs and closes it. Error{io}.
WrittenFile write_safetensors(const std::string& path, const std::vector<NamedView>& tensors,
                              const std::map<std::string, std::string>& metadata);

struct TensorEntry {
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  int64_t begin = 0, end = 0;  // offsets in the data part
};

class SafetensorsFile {
 public:
  static SafetensorsFile open(
      const std::string& path);  // Error{data} naming the rule that is broken

  const std::map<std::string, TensorEntry>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // Fills every view; the file must hold exactly these names, with these types and shapes.
  void read_all(const std::vector<NamedView>& tensors) const;

 private:
  void parse(const std::string& header);
  void check_layout(int64_t data_bytes) const;

  File file_;
  std::string path_;
  int64_t data_start_ = 0;
  std::map<std::string, TensorEntry> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace kla
