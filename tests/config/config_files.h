// Config files for tests, in a folder of their own that goes away.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "config/load.h"
#include "core/error.h"

namespace kla::test {

class ConfigFiles {
 public:
  ConfigFiles() {
    std::string pattern = (std::filesystem::temp_directory_path() / "kla_config_XXXXXX").string();
    folder_ = ::mkdtemp(pattern.data());
  }
  ~ConfigFiles() { std::filesystem::remove_all(folder_); }
  ConfigFiles(const ConfigFiles&) = delete;
  ConfigFiles& operator=(const ConfigFiles&) = delete;

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories((folder_ / name).parent_path());
    std::ofstream(folder_ / name, std::ios::binary) << text;
    return path(name);
  }

 private:
  std::filesystem::path folder_;
};

// The text of the ConfigError that the call throws; "" if it throws none.
template <class Call>
std::string error_of(Call&& call) {
  try {
    call();
  } catch (const ConfigError& error) {
    return error.code() == Exit::usage ? error.what() : "wrong exit code";
  }
  return "";
}

inline std::string fragment_error(const std::string& file,
                                  const std::vector<std::string>& overrides = {}) {
  return error_of([&] { load_config(file, overrides, Completeness::fragment); });
}

}  // namespace kla::test
