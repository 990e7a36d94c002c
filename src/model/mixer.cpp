#include "model/mixer.h"

#include "core/error.h"
#include "model/gated_delta.h"

namespace kla {

// The table of mixers: a new one is a new file and a line here.
std::unique_ptr<Mixer> make_mixer(const ModelConfig& config, ParameterTable& table,
                                  const std::string& prefix) {
  if (config.mixer == "gated_delta") return std::make_unique<GatedDelta>(config, table, prefix);
  throw Error(Exit::usage, "model.mixer: unknown mixer '" + config.mixer + "'",
              "known mixers: gated_delta");
}

}  // namespace kla
