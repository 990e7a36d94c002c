// kla: a table of subcommands. An Error becomes one line, what to do about it, and an exit code.
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>

#include "commands/commands.h"
#include "commands/failure.h"
#include "core/error.h"
#include "core/log.h"
#include "version.h"

namespace {

struct Command {
  const char* name;
  const char* help;
  int (*run)(const kla::CommandLine&);
};

constexpr Command kCommands[] = {
    {"train", "train a model from a config, or continue a run", kla::train_command},
    {"eval", "perplexity of a run on its validation set, with intervals", kla::eval_command},
    {"generate", "continue a prompt with a trained model", kla::generate_command},
    {"check", "is a trained model computed correctly on this machine?", kla::check_command},
    {"sweep", "variants x seeds of a config: plan, run, resume", kla::sweep_command},
    {"compare", "paired difference of two runs on the same validation windows",
     kla::compare_command},
    {"report", "one HTML page about one or more runs", kla::report_command},
    {"data", "prepare a corpus: text -> tokenizer -> token shards", kla::data_command},
    {"bench", "speed of the training step and of every op", kla::bench_command},
    {"doctor", "devices, libraries and peak rates of this machine", kla::doctor_command},
    {"config", "check, show and explain configs", kla::config_command},
};

void print_usage(std::FILE* out) {
  std::fprintf(out,
               "kla %s: linear-attention language models, from one YAML file each\n\n"
               "usage: kla COMMAND [arguments]     (kla COMMAND --help has an example)\n\n",
               KLA_VERSION);
  for (const Command& command : kCommands)
    std::fprintf(out, "  %-10s %s\n", command.name, command.help);
}

int dispatch(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  if (name == "--version") {
    std::printf("kla %s (%s), %s, %s\n", KLA_VERSION, KLA_GIT, KLA_COMPILER, KLA_BUILD_TYPE);
    return 0;
  }
  if (name.empty() || name == "--help" || name == "-h" || name == "help") {
    print_usage(stdout);
    return name.empty() ? static_cast<int>(kla::Exit::usage) : 0;
  }
  for (const Command& command : kCommands)
    if (name == command.name) return command.run(kla::CommandLine(argv + 2, argv + argc));
  throw kla::Error(kla::Exit::usage, "unknown command '" + kla::log::printable(name) + "'",
                   "'kla --help' lists the commands");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return dispatch(argc, argv);
  } catch (const kla::Error& error) {
    return kla::print_failure(error);
  } catch (const std::bad_alloc&) {
    return kla::print_failure(kla::Error(kla::Exit::io, "out of memory",
                                         "reduce train.micro_batch_size or data.seq_len"));
  } catch (const std::exception& e) {
    return kla::print_failure(
        kla::Error(kla::Exit::internal, std::string("internal error: ") + e.what(),
                   "this is a bug in kla: please report it with the command line"));
  }
}
