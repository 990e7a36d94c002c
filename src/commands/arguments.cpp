#include "commands/arguments.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>

#include "core/error.h"

namespace kla {

struct Arguments::App {
  explicit App(const std::string& description, const std::string& command)
      : cli(description, command) {}
  CLI::App cli;
};

Arguments::Arguments(const std::string& command, const std::string& description,
                     const std::string& example)
    : app_(std::make_unique<App>(description, "kla " + command)) {
  app_->cli.footer("Example:\n  " + example);
  app_->cli.get_formatter()->column_width(36);
}
Arguments::~Arguments() = default;

void Arguments::positional(const std::string& name, std::string& value, const std::string& help,
                           bool required) {
  app_->cli.add_option(name, value, help)->required(required);
}
void Arguments::positionals(const std::string& name, std::vector<std::string>& values,
                            const std::string& help, bool required) {
  app_->cli.add_option(name, values, help)->required(required);
}
void Arguments::option(const std::string& flags, std::string& value, const std::string& help) {
  app_->cli.add_option(flags, value, help)->capture_default_str();
}
void Arguments::option(const std::string& flags, int64_t& value, const std::string& help) {
  app_->cli.add_option(flags, value, help)->capture_default_str();
}
void Arguments::option(const std::string& flags, uint64_t& value, const std::string& help) {
  app_->cli.add_option(flags, value, help)->capture_default_str();
}
void Arguments::option(const std::string& flags, double& value, const std::string& help) {
  app_->cli.add_option(flags, value, help)->capture_default_str();
}
void Arguments::option(const std::string& flags, std::vector<int64_t>& values,
                       const std::string& help) {
  app_->cli.add_option(flags, values, help)->delimiter(',');
}
void Arguments::flag(const std::string& flags, bool& value, const std::string& help) {
  app_->cli.add_flag(flags, value, help);
}
void Arguments::overrides(std::vector<std::string>& values) {
  overrides_ = &values;
}

bool Arguments::parse(const std::vector<std::string>& argv) {
  std::vector<std::string> own;
  for (size_t i = 0; i < argv.size(); ++i) {
    const std::string& word = argv[i];
    const std::string key = word.substr(0, word.find('='));
    const bool dotted_flag = word.rfind("--", 0) == 0 && key.find('.') != std::string::npos;
    const bool assignment = word.rfind("-", 0) != 0 && word.find('=') != std::string::npos;
    if (!overrides_ || !(dotted_flag || assignment)) {
      own.push_back(word);
    } else if (dotted_flag && key == word) {  // --key value
      if (i + 1 == argv.size())
        throw Error(Exit::usage, "'" + word + "' has no value", "write " + word + "=VALUE");
      overrides_->push_back(word.substr(2) + "=" + argv[++i]);
    } else {
      overrides_->push_back(dotted_flag ? word.substr(2) : word);
    }
  }
  std::reverse(own.begin(), own.end());  // CLI11 takes a vector back to front
  try {
    app_->cli.parse(own);
  } catch (const CLI::CallForHelp&) {
    std::fputs(app_->cli.help().c_str(), stdout);
    return false;
  } catch (const CLI::ParseError& e) {
    throw Error(Exit::usage, e.what(), "see '" + app_->cli.get_name() + " --help'");
  }
  return true;
}

}  // namespace kla
