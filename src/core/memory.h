// ArenaSet: the memory of a program, by name. It starts as counting arenas; after a dry run of
// everything the program will do, materialize() allocates each at the size it was seen to need,
// once and for all.
//
//   for (bool real : {false, true}) {
//     if (real) memory.materialize();
//     context.dry_run = !real;
//     allocate();             // take views from memory["..."]
//     if (!real) plan();      // run forward, backward, evaluation ... dry
//   }
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/arena.h"

namespace kla {

class ArenaSet {
 public:
  Arena& operator[](const std::string& name);  // created at first use, while counting
  // In a device's memory, the host's if null. Error{io} naming the arena that does not fit.
  void materialize(DeviceServices* services = nullptr);

  int64_t total() const;      // bytes: planned, or allocated
  std::string table() const;  // who holds what, one line an arena
  bool as_planned() const;    // every high-water mark equals its plan

 private:
  std::vector<std::unique_ptr<Arena>> arenas_;
  std::vector<int64_t> planned_;  // high-water marks of the dry run; empty while counting
};

std::string format_bytes(int64_t bytes);  // "1.25 GiB"

}  // namespace kla
