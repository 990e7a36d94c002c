#include "core/memory.h"

#include <cstdio>

#include "core/error.h"

namespace kla {

Arena& ArenaSet::operator[](const std::string& name) {
  for (auto& arena : arenas_)
    if (arena->name() == name) return *arena;
  KLA_CHECK(planned_.empty(), "arena '" + name + "' was not part of the plan");
  return *arenas_.emplace_back(std::make_unique<Arena>(name));
}

void ArenaSet::materialize(DeviceServices* services) {
  KLA_CHECK(planned_.empty(), "the memory was allocated already");
  for (auto& arena : arenas_) {
    planned_.push_back(arena->high_water());
    arena = std::make_unique<Arena>(arena->name(), arena->high_water(), services);
  }
}

int64_t ArenaSet::total() const {
  int64_t bytes = 0;
  for (const auto& arena : arenas_)
    bytes += arena->counting() ? arena->high_water() : arena->capacity();
  return bytes;
}

std::string ArenaSet::table() const {
  std::string text;
  char line[96];
  for (const auto& arena : arenas_) {
    const int64_t bytes = arena->counting() ? arena->high_water() : arena->capacity();
    std::snprintf(line, sizeof(line), "  %-14s %12s\n", arena->name().c_str(),
                  format_bytes(bytes).c_str());
    text += line;
  }
  std::snprintf(line, sizeof(line), "  %-14s %12s", "total", format_bytes(total()).c_str());
  return text + line;
}

bool ArenaSet::as_planned() const {
  for (size_t i = 0; i < planned_.size(); ++i)
    if (arenas_[i]->high_water() != planned_[i]) return false;
  return !planned_.empty();
}

std::string format_bytes(int64_t bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(units)) {
    value /= 1024;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof(text), unit == 0 ? "%.0f %s" : "%.2f %s", value, units[unit]);
  return text;
}

}  // namespace kla
