// The subcommands: each parses its own arguments, wires the layers together and returns an exit
// code.
#pragma once

#include <string>
#include <vector>

namespace kla {

using CommandLine = std::vector<std::string>;  // argv without program and subcommand

int train_command(const CommandLine&);
int eval_command(const CommandLine&);
int generate_command(const CommandLine&);
int check_command(const CommandLine&);
int data_command(const CommandLine&);
int config_command(const CommandLine&);
int report_command(const CommandLine&);
int sweep_command(const CommandLine&);
int compare_command(const CommandLine&);
int bench_command(const CommandLine&);
int doctor_command(const CommandLine&);

}  // namespace kla
