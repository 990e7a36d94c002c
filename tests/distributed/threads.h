// Ranks as threads of the test, over real TCP connections on the loopback device.
#pragma once

#include <gtest/gtest.h>

#include <exception>
#include <functional>
#include <thread>
#include <vector>

#include "distributed/channel.h"
#include "distributed/socket.h"

namespace kla::testing {

inline int free_port() {
  return Socket::listen(0).port();
}

inline Launch tcp_launch(int rank, int size, int port) {
  Launch launch;
  launch.rank = rank;
  launch.size = size;
  launch.launcher = "torchrun";
  launch.address = "127.0.0.1";
  launch.port = port;
  return launch;
}

// Runs `work` on each rank; what a rank throws is its entry of the result.
inline std::vector<std::exception_ptr> on_ranks(int size, double timeout_s,
                                                const std::function<void(Channel&)>& work) {
  const int port = free_port();
  std::vector<std::exception_ptr> thrown(static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank)
    threads.emplace_back([&, rank] {
      try {
        const auto channel = open_channel(tcp_launch(rank, size, port), 20);
        channel->set_timeout(timeout_s);
        work(*channel);
      } catch (...) {
        thrown[static_cast<size_t>(rank)] = std::current_exception();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return thrown;
}

inline std::string text_of(const std::exception_ptr& thrown) {
  if (!thrown) return "";
  try {
    std::rethrow_exception(thrown);
  } catch (const std::exception& e) {
    return e.what();
  }
}

inline void expect_no_error(const std::vector<std::exception_ptr>& thrown) {
  for (const auto& t : thrown) EXPECT_EQ(text_of(t), "");
}

}  // namespace kla::testing
