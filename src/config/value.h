// Values of single keys: from YAML text into the struct, strictly, and back into YAML text so that
// reading it again gives the same bits.
#pragma once

#include <string>
#include <vector>

#include "config/schema.h"
#include "config/yaml.h"

namespace kla {

// Sets the field. What does not fit is reported at its place; the field then keeps its value.
bool assign(const Field& field, const YamlNode& node, const SourceText& source,
            Diagnostics& diagnostics);

std::string spell(const Slot& slot);                      // "2097152", "[0.9, 0.95]", "runs/kla"
std::string expectation(const Field& field);              // "a whole number of tokens >= 1"
std::vector<std::string> choices_of(const Field& field);  // fixed or registered; empty: free
bool is_empty(const Slot& slot);                          // "", 0 or []

}  // namespace kla
