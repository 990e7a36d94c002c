// How an Error reaches people: one line, what to do about it, and an exit code.
#pragma once

#include <string>

#include "core/error.h"

namespace kla {

// `who` goes before the message: "rank 2 on node7: ". Returns the exit code.
int print_failure(const Error&, const std::string& who = "");

}  // namespace kla
