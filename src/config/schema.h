// The schema: one list of every key with its place in the struct, meaning, unit, range and choices.
// It drives parsing, `kla config`, the frozen file and the suggestions for misspelt keys. A schema
// is bound to one struct object; schema.cpp has the lists.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "config/bench_config.h"
#include "config/config.h"
#include "config/prepare_config.h"
#include "config/sweep_config.h"

namespace kla {

using Slot = std::variant<bool*, int64_t*, uint64_t*, double*, std::string*,
                          std::vector<std::string>*, std::vector<int64_t>*, std::vector<double>*>;

enum class Words { any, identifier, file_name };  // what a text value may look like

struct Traits {
  const char* unit = "";
  double min = -std::numeric_limits<double>::infinity();  // of numbers, also inside lists
  double max = std::numeric_limits<double>::infinity();
  bool above_min = false;  // min itself is out
  bool below_max = false;  // max itself is out
  std::vector<const char*> choices = {};
  size_t count = 0;  // list: exactly so many elements; 0: any
  Words words = Words::any;
  bool safe = false;      // cannot change the result of a run
  bool path = false;      // {name} and {seed} are replaced
  bool required = false;  // a run cannot do without: not empty, not 0
};

struct Field {
  std::string path;  // "optim.lr"
  Slot slot;
  std::string doc;
  Traits traits;
};

class Schema {
 public:
  void add(const std::string& name, Slot slot, const std::string& doc, Traits traits = {});
  // Adds a sub-struct's keys below `name`, by its own describe(Schema&, Struct&).
  template <class Struct>
  void section(const std::string& name, const std::string& doc, Struct& object) {
    const std::string outer = std::exchange(prefix_, join(prefix_, name));
    sections_.push_back({prefix_, doc});
    describe(*this, object);
    prefix_ = outer;
  }

  struct Section {
    std::string path, doc;
  };
  const std::vector<Field>& fields() const { return fields_; }
  const std::vector<Section>& sections() const { return sections_; }
  const Field* find(const std::string& path) const;
  bool is_section(const std::string& path) const;  // "" is the root
  // Names directly below a section, fields and sections.
  std::vector<std::string> names_below(const std::string& section) const;
  static std::string join(const std::string& section, const std::string& name) {
    return section.empty() ? name : section + "." + name;
  }

 private:
  std::string prefix_;
  std::vector<Field> fields_;
  std::vector<Section> sections_;
};

Schema schema_of(Config& config);
Schema schema_of(PrepareConfig& config);
Schema schema_of(BenchConfig& config);
Schema schema_of(SweepConfig& config);  // the keys beside `grid` and `variants`

}  // namespace kla
