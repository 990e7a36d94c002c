// Command-line arguments of one subcommand. A thin face of CLI11, which only arguments.cpp
// includes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace kla {

class Arguments {
 public:
  Arguments(const std::string& command, const std::string& description, const std::string& example);
  ~Arguments();

  void positional(const std::string& name, std::string& value, const std::string& help,
                  bool required);
  void positionals(const std::string& name, std::vector<std::string>& values,
                   const std::string& help, bool required);
  void option(const std::string& flags, std::string& value, const std::string& help);
  void option(const std::string& flags, int64_t& value, const std::string& help);
  void option(const std::string& flags, uint64_t& value, const std::string& help);
  void option(const std::string& flags, double& value, const std::string& help);
  void option(const std::string& flags, std::vector<int64_t>& values, const std::string& help);
  void flag(const std::string& flags, bool& value, const std::string& help);

  // Also accept config overrides: key=value, --key value and --key=value with a dot in the key.
  void overrides(std::vector<std::string>& values);

  // argv without program and subcommand. False: help was asked for and printed. Error{usage}.
  bool parse(const std::vector<std::string>& argv);

 private:
  struct App;
  std::unique_ptr<App> app_;
  std::vector<std::string>* overrides_ = nullptr;
};

}  // namespace kla
