#include "distributed/socket.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>

#include "core/error.h"

namespace kla {
namespace {

using AddressList = std::unique_ptr<addrinfo, void (*)(addrinfo*)>;

AddressList resolve(const char* host, int port, int flags) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags;
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(host, std::to_string(port).c_str(), &hints, &found);
  if (error != 0)
    throw Error(Exit::distributed,
                "cannot find host '" + std::string(host ? host : "") + "': " + gai_strerror(error),
                "MASTER_ADDR must be the host of rank 0");
  return {found, ::freeaddrinfo};
}

bool wait_for(int descriptor, short events, std::chrono::milliseconds wait) {
  pollfd entry{descriptor, events, 0};
  return ::poll(&entry, 1, static_cast<int>(std::max<int64_t>(0, wait.count()))) > 0;
}

std::chrono::milliseconds left_until(Deadline deadline) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
}

// One attempt to connect; nothing if it is refused or takes too long.
Socket try_connect(const addrinfo& address, Deadline deadline) {
  Socket socket(::socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.is_open()) return {};
  if (::connect(socket.descriptor(), address.ai_addr, address.ai_addrlen) != 0) {
    if (errno != EINPROGRESS) return {};
    if (!wait_for(socket.descriptor(), POLLOUT, left_until(deadline))) return {};
    int error = 0;
    socklen_t size = sizeof(error);
    ::getsockopt(socket.descriptor(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) return {};
  }
  return socket;
}

}  // namespace

Socket::Socket(Socket&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}

Socket& Socket::operator=(Socket&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

Socket::~Socket() {
  if (is_open()) ::close(descriptor_);
}

void Socket::make_ready() const {
  const int on = 1;
  ::setsockopt(descriptor_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  ::fcntl(descriptor_, F_SETFL, ::fcntl(descriptor_, F_GETFL) | O_NONBLOCK);
}

Socket Socket::listen(int port) {
  const AddressList list = resolve(nullptr, port, AI_PASSIVE);
  std::string why;
  for (const addrinfo* a = list.get(); a; a = a->ai_next) {
    Socket socket(::socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!socket.is_open()) continue;
    const int on = 1, off = 0;
    ::setsockopt(socket.descriptor_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (a->ai_family == AF_INET6)
      ::setsockopt(socket.descriptor_, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    if (::bind(socket.descriptor_, a->ai_addr, a->ai_addrlen) == 0 &&
        ::listen(socket.descriptor_, SOMAXCONN) == 0)
      return socket;
    why = std::strerror(errno);
  }
  throw Error(Exit::distributed, "cannot listen on port " + std::to_string(port) + ": " + why,
              "set MASTER_PORT to a free port of rank 0's host");
}

Socket Socket::connect(const std::string& host, int port, Deadline deadline) {
  const AddressList list = resolve(host.c_str(), port, 0);
  do {
    for (const addrinfo* a = list.get(); a; a = a->ai_next) {
      Socket socket = try_connect(*a, deadline);
      if (!socket.is_open()) continue;
      socket.make_ready();
      return socket;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  } while (Clock::now() < deadline);
  throw Error(
      Exit::distributed,
      "nobody listens at " + host + ", port " + std::to_string(port) + ": is rank 0 running?",
      "look at rank 0's output; a firewall may be in between");
}

std::optional<Socket> Socket::accept(std::chrono::milliseconds wait) const {
  if (!wait_for(descriptor_, POLLIN, wait)) return std::nullopt;
  Socket socket(::accept4(descriptor_, nullptr, nullptr, SOCK_CLOEXEC));
  if (!socket.is_open()) return std::nullopt;
  socket.make_ready();
  return socket;
}

bool Socket::send_all(const void* data, int64_t bytes, Deadline deadline) const {
  for (int64_t done = 0; done < bytes;) {
    const int64_t n = send_some(static_cast<const char*>(data) + done, bytes - done);
    if (n < 0 || Clock::now() > deadline) return false;
    done += n;
    if (n == 0) wait_for(descriptor_, POLLOUT, std::chrono::milliseconds(10));
  }
  return true;
}

bool Socket::receive_all(void* data, int64_t bytes, Deadline deadline) const {
  for (int64_t done = 0; done < bytes;) {
    const int64_t n = receive_some(static_cast<char*>(data) + done, bytes - done);
    if (n < 0 || Clock::now() > deadline) return false;
    done += n;
    if (n == 0) wait_for(descriptor_, POLLIN, std::chrono::milliseconds(10));
  }
  return true;
}

int64_t Socket::send_some(const void* data, int64_t bytes) const {
  const ssize_t n = ::send(descriptor_, data, static_cast<size_t>(bytes), MSG_NOSIGNAL);
  if (n >= 0) return n;
  return errno == EAGAIN || errno == EINTR ? 0 : -1;
}

int64_t Socket::receive_some(void* data, int64_t bytes) const {
  const ssize_t n = ::recv(descriptor_, data, static_cast<size_t>(bytes), 0);
  if (n > 0) return n;
  return n < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

int Socket::port() const {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  ::getsockname(descriptor_, reinterpret_cast<sockaddr*>(&address), &size);
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                             : reinterpret_cast<sockaddr_in&>(address).sin_port);
}

std::string Socket::peer() const {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  ::getpeername(descriptor_, reinterpret_cast<sockaddr*>(&address), &size);
  char host[NI_MAXHOST] = {};
  ::getnameinfo(reinterpret_cast<sockaddr*>(&address), size, host, sizeof(host), nullptr, 0,
                NI_NUMERICHOST);
  return host;
}

}  // namespace kla
