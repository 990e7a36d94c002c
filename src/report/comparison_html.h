// The comparison over seeds as a section of the page.
#pragma once

#include <string>

#include "report/comparison.h"

namespace kla::report {

// "" if no variant has several runs.
std::string comparison_table(const Summary& summary, const Comparison& comparison);

}  // namespace kla::report
