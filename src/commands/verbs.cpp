// Argument parsing of the commands whose work is a function of its own: data, config, report,
// bench.
#include "commands/arguments.h"
#include "commands/commands.h"
#include "commands/config_command.h"
#include "commands/data_command.h"
#include "commands/setup.h"

namespace kla {
namespace {

// Splits "VERB rest"; the usage of the command if there is no such verb.
std::string take_verb(const std::string& command, const CommandLine& line,
                      const std::vector<std::string>& verbs) {
  for (const std::string& verb : verbs)
    if (!line.empty() && line[0] == verb) return verb;
  std::string known;
  for (const std::string& verb : verbs) known += (known.empty() ? "" : ", ") + verb;
  throw Error(Exit::usage, "kla " + command + " needs one of: " + known,
              "see 'kla " + command + " " + verbs[0] + " --help'");
}

CommandLine rest(const CommandLine& line) {
  return {line.begin() + 1, line.end()};
}

}  // namespace

int data_command(const CommandLine& line) {
  const std::string verb = take_verb("data", line, {"prepare", "check"});
  if (verb == "prepare") {
    std::string config;
    std::vector<std::string> overrides;
    Arguments arguments("data prepare", "Turns text into a tokenizer and token shards.",
                        "kla data prepare configs/data/quickstart.yaml");
    arguments.positional("config", config, "YAML config; key=value words after it override", true);
    arguments.overrides(overrides);
    if (!arguments.parse(rest(line))) return 0;
    return run_data_prepare(config, overrides);
  }
  std::vector<std::string> directories;
  Arguments arguments("data check", "Reads every byte of prepared data and prints what is in it.",
                      "kla data check data/quickstart");
  arguments.positionals("directory", directories, "prepared folders", true);
  if (!arguments.parse(rest(line))) return 0;
  return run_data_check(directories);
}

int config_command(const CommandLine& line) {
  register_model_choices();
  const std::string verb = take_verb("config", line, {"check", "show", "explain"});
  if (verb == "check") {
    std::vector<std::string> files;
    Arguments arguments("config check", "Checks configs: training, data and bench.",
                        "kla config check configs/paper/kla_0.4b.yaml");
    arguments.positionals("file", files, "YAML configs", true);
    return arguments.parse(rest(line)) ? run_config_check(files) : 0;
  }
  std::string key, file;
  std::vector<std::string> overrides;
  if (verb == "show") {
    Arguments arguments("config show", "Prints a config in full, with where each value came from.",
                        "kla config show configs/quickstart/kla.yaml optim.lr=1e-3");
    arguments.positional("file", file, "YAML config; key=value words after it override", true);
    arguments.overrides(overrides);
    return arguments.parse(rest(line)) ? run_config_show(file, overrides) : 0;
  }
  Arguments arguments("config explain", "What a key means and, with a config, what set it.",
                      "kla config explain optim.lr configs/quickstart/kla.yaml");
  arguments.positional("key", key, "key or section, such as optim.lr", true);
  arguments.positional("file", file, "YAML config", false);
  arguments.overrides(overrides);
  return arguments.parse(rest(line)) ? run_config_explain(key, file, overrides) : 0;
}

}  // namespace kla
