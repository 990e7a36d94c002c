// Socket: a TCP connection or listener with an owner. Everything that waits has a deadline.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "core/clock.h"

namespace kla {

using Deadline = Clock::time_point;

class Socket {
 public:
  Socket() = default;
  explicit Socket(int descriptor) : descriptor_(descriptor) {}
  Socket(Socket&& other) noexcept;
  Socket& operator=(Socket&& other) noexcept;
  ~Socket();

  // On every address of this host; port 0: any free one. Error{distributed}.
  static Socket listen(int port);
  // Tries again until `host` listens. Error{distributed} at the deadline, or if it has no address.
  static Socket connect(const std::string& host, int port, Deadline);

  // The next connection within `wait`, or nothing.
  std::optional<Socket> accept(std::chrono::milliseconds wait) const;

  // All of it; false if the other side closes, or the deadline passes.
  bool send_all(const void* data, int64_t bytes, Deadline) const;
  bool receive_all(void* data, int64_t bytes, Deadline) const;

  // As much as goes without waiting: bytes moved, or -1 once the connection has ended.
  int64_t send_some(const void* data, int64_t bytes) const;
  int64_t receive_some(void* data, int64_t bytes) const;

  int port() const;          // our own
  std::string peer() const;  // numeric address of the other side
  int descriptor() const { return descriptor_; }
  bool is_open() const { return descriptor_ >= 0; }

 private:
  void make_ready() const;  // non-blocking, no delay for small messages
  int descriptor_ = -1;
};

}  // namespace kla
