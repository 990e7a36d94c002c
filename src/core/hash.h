// Hashes: XXH3 for integrity (fast), SHA-256 for identity (tokenizers, configs).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace kla {

uint64_t xxh3_64(const void* data, size_t bytes);
std::string xxh3_128_hex(const void* data, size_t bytes);  // 32 lower-case hex digits
std::string sha256_hex(std::string_view data);             // 64 lower-case hex digits
std::string sha256_file(const std::string& path);          // Error{io} if it cannot be read

// Streaming XXH3-128.
class Xxh3Stream {
 public:
  Xxh3Stream();
  ~Xxh3Stream();
  void update(const void* data, size_t bytes);
  std::string hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kla
