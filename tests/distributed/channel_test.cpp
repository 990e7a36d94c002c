// Messages between ranks, and what becomes of a rank that is missing, frozen or gone.
#include "distributed/channel.h"

#include <gtest/gtest.h>

#include <future>
#include <numeric>

#include "tests/distributed/threads.h"
#include "tests/train/scratch.h"

namespace kla {
namespace {

using testing::expect_no_error;
using testing::on_ranks;
using testing::tcp_launch;
using testing::text_of;

// Every rank sends everyone `count` numbers of its own and checks what it gets.
void exchange_numbers(Channel& channel, int count) {
  std::vector<int> mine(static_cast<size_t>(count));
  std::iota(mine.begin(), mine.end(), 1000000 * channel.rank());
  std::vector<std::vector<int>> theirs(static_cast<size_t>(channel.size()), mine);
  std::vector<Channel::Send> sends;
  std::vector<Channel::Receive> receives;
  const auto bytes = static_cast<int64_t>(mine.size() * sizeof(int));
  for (int peer = 0; peer < channel.size(); ++peer) {
    if (peer == channel.rank()) continue;
    sends.push_back({peer, mine.data(), bytes});
    receives.push_back({peer, theirs[static_cast<size_t>(peer)].data(), bytes});
  }
  channel.exchange(sends, receives, "the numbers");
  for (int peer = 0; peer < channel.size(); ++peer)
    for (int i = 0; i < count; ++i)
      ASSERT_EQ(theirs[static_cast<size_t>(peer)][static_cast<size_t>(i)], 1000000 * peer + i);
}

void meet(Channel& channel) {
  exchange_numbers(channel, 1);
}

TEST(Channel, CarriesMessagesOfAnySizeInOrder) {
  for (int size : {1, 2, 5})
    expect_no_error(on_ranks(size, 20, [](Channel& channel) {
      for (int count : {1, 0, 3, 1 << 20, 2}) exchange_numbers(channel, count);
    }));
}

TEST(Channel, WaitsForASlowRank) {
  expect_no_error(on_ranks(3, 20, [](Channel& channel) {
    if (channel.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(300));
    meet(channel);
  }));
}

// The others must name rank 1, one of them as the speaker, soon after the time-out.
void expect_rank_1_named(const std::vector<std::exception_ptr>& thrown, const std::string& why) {
  int speakers = 0;
  for (size_t rank : {size_t{0}, size_t{2}, size_t{3}}) {
    ASSERT_TRUE(thrown[rank]) << rank;
    try {
      std::rethrow_exception(thrown[rank]);
    } catch (const LostRank& e) {
      EXPECT_EQ(e.code(), Exit::distributed);
      EXPECT_EQ(std::string(e.what()).rfind("rank 1 on ", 0), 0u) << e.what();
      EXPECT_NE(std::string(e.what()).find(why), std::string::npos) << e.what();
      EXPECT_EQ(std::string(e.what()).find("rank 2"), std::string::npos) << e.what();
      speakers += e.speaker();
      EXPECT_EQ(e.speaker(), rank == 0);
    }
  }
  EXPECT_EQ(speakers, 1);
}

TEST(Channel, NamesAFrozenRank) {
  const auto start = Clock::now();
  expect_rank_1_named(on_ranks(4, 0.5,
                               [](Channel& channel) {
                                 meet(channel);
                                 if (channel.rank() == 1)
                                   std::this_thread::sleep_for(std::chrono::seconds(4));
                                 else
                                   meet(channel);
                               }),
                      "did not take part in the numbers within 0.5 s");
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(10));
}

TEST(Channel, NamesADeadRankAtOnce) {
  const auto start = Clock::now();
  expect_rank_1_named(on_ranks(4, 60,
                               [](Channel& channel) {
                                 meet(channel);
                                 if (channel.rank() != 1) meet(channel);
                               }),
                      "lost its connection");
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(10));
}

TEST(Channel, TheOthersHearOfAnErrorAtOnce) {
  const auto start = Clock::now();
  std::vector<Channel::Verdict> verdicts(3);
  const auto thrown = on_ranks(3, 60, [&](Channel& channel) {
    meet(channel);
    Channel::Verdict& verdict = verdicts[static_cast<size_t>(channel.rank())];
    try {
      if (channel.rank() == 2) throw Error(Exit::io, "no disk");
      meet(channel);
    } catch (const Error& e) {
      verdict = channel.announce(e);
      throw;
    }
  });
  for (size_t rank : {size_t{0}, size_t{1}}) {
    EXPECT_EQ(text_of(thrown[rank]), "rank 2 has failed");
    EXPECT_FALSE(verdicts[rank].speaker);
  }
  EXPECT_TRUE(verdicts[2].speaker);
  EXPECT_FALSE(verdicts[2].unanimous);
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(10));
}

TEST(Channel, AnErrorOfAllIsReportedByOne) {
  std::vector<Channel::Verdict> verdicts(3);
  on_ranks(3, 60, [&](Channel& channel) {
    verdicts[static_cast<size_t>(channel.rank())] = channel.announce(Error(Exit::usage, "a typo"));
    meet(channel);  // nobody leaves before all have heard
  });
  for (size_t rank = 0; rank < 3; ++rank) {
    EXPECT_TRUE(verdicts[rank].unanimous) << rank;
    EXPECT_EQ(verdicts[rank].speaker, rank == 0);
  }
}

// ------------------------------------------------------------------------------------- rendezvous

TEST(Rendezvous, NamesTheRankThatDoesNotArrive) {
  const int port = testing::free_port();
  std::thread other([&] {
    EXPECT_THROW(open_tcp_channel(tcp_launch(1, 3, port), 2), Error);  // it is told by rank 0
  });
  EXPECT_REFUSED(Exit::distributed, "rank 2 did not arrive within 1 s",
                 open_tcp_channel(tcp_launch(0, 3, port), 1));
  other.join();
}

TEST(Rendezvous, SaysThatNobodyListens) {
  EXPECT_REFUSED(Exit::distributed, "nobody listens at 127.0.0.1",
                 open_tcp_channel(tcp_launch(1, 2, testing::free_port()), 0.3));
}

TEST(Rendezvous, TurnsStrangersAway) {
  const int port = testing::free_port();
  std::thread stranger([&] {
    const auto deadline = Clock::now() + std::chrono::seconds(20);
    const Socket socket = Socket::connect("127.0.0.1", port, deadline);
    const std::string text = "GET / HTTP/1.1\r\nHost: nobody knows\r\n\r\n";
    EXPECT_TRUE(socket.send_all(text.data(), static_cast<int64_t>(text.size()), deadline));
    char end;
    EXPECT_FALSE(socket.receive_all(&end, 1, deadline));
  });
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    meet(*open_tcp_channel(tcp_launch(1, 2, port), 20));
  });
  meet(*open_tcp_channel(tcp_launch(0, 2, port), 20));
  stranger.join();
  other.join();
}

TEST(Rendezvous, RefusesRanksThatDisagree) {
  const auto arrive = [](const Launch& launch) {  // and is turned away
    return std::async(std::launch::async,
                      [launch] { EXPECT_THROW(open_tcp_channel(launch, 3), Error); });
  };
  int port = testing::free_port();
  const auto first = arrive(tcp_launch(1, 3, port)), second = arrive(tcp_launch(1, 3, port));
  EXPECT_REFUSED(Exit::usage, "two processes are rank 1",
                 open_tcp_channel(tcp_launch(0, 3, port), 20));
  port = testing::free_port();
  const auto third = arrive(tcp_launch(1, 2, port));
  EXPECT_REFUSED(Exit::usage, "rank 1 counts 2 ranks, this one 3",
                 open_tcp_channel(tcp_launch(0, 3, port), 20));
}

}  // namespace
}  // namespace kla
