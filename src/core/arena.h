// Arena: one block of memory, handed out by bumping an offset and given back in reverse order.
// A counting arena (no memory behind it) runs through a dry run of the program and learns how large
// the real one must be: that is the whole memory planner.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/view.h"

namespace kla {

class DeviceServices;  // core/device.h

class Arena {
 public:
  static constexpr int64_t kAlignment = 64;  // bytes: a cache line and an AVX-512 vector

  explicit Arena(std::string name) : name_(std::move(name)) {}  // counting: views have null data
  // `capacity` bytes of a device's memory. Error{io} naming what was asked, what is free and which
  // setting to change.
  Arena(std::string name, int64_t capacity, DeviceServices* services = nullptr);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  View allocate(DType dtype, std::initializer_list<int64_t> dims);
  template <class T>
  T* allocate(int64_t count) {
    return static_cast<T*>(allocate(DTypeOf<T>::value, {count}).data);
  }

  // Fills what is handed out from now on with NaN bytes (0xFF), so that tests see reads of fresh
  // memory.
  void poison(bool on) { poison_ = on; }

  bool counting() const { return base_ == nullptr; }
  int64_t mark() const { return used_; }
  void release(int64_t mark);  // gives back everything allocated since mark()
  int64_t used() const { return used_; }
  int64_t high_water() const { return high_water_; }
  int64_t capacity() const { return capacity_; }
  const std::string& name() const { return name_; }

 private:
  std::string name_;
  DeviceServices* services_ = nullptr;
  std::byte* base_ = nullptr;
  int64_t capacity_ = 0, used_ = 0, high_water_ = 0;
  bool poison_ = false;
};

// Gives back what was allocated inside a scope.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.release(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  int64_t mark_;
};

}  // namespace kla
