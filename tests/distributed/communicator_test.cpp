// Sums and exchanges of tensors, the sharded optimizer, and the comparison of ranks before a run.
#include "distributed/communicator.h"

#include <gtest/gtest.h>

#include <cstring>
#include <mutex>

#include "core/philox.h"
#include "tests/distributed/threads.h"
#include "tests/train/scratch.h"
#include "train/optimizer.h"

namespace kla {
namespace {

using testing::expect_no_error;
using testing::on_ranks;
using testing::text_of;

std::vector<float> numbers(uint64_t seed, int64_t count) {
  const RandomStream random(seed, "communicator test");
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i)
    values.push_back(static_cast<float>(random.normal(static_cast<uint64_t>(i))));
  return values;
}

// ((0 + 1) + (2 + 3)) ...: what every rank must find in its part, bit for bit.
std::vector<float> tree_sum(int size, int64_t count) {
  std::vector<std::vector<float>> parts;
  for (int rank = 0; rank < size; ++rank)
    parts.push_back(numbers(static_cast<uint64_t>(rank), count));
  for (; parts.size() > 1;) {
    std::vector<std::vector<float>> sums;
    for (size_t i = 0; i < parts.size(); i += 2) {
      if (i + 1 < parts.size())
        for (size_t j = 0; j < parts[i].size(); ++j) parts[i][j] += parts[i + 1][j];
      sums.push_back(parts[i]);
    }
    parts = sums;
  }
  return parts[0];
}

TEST(Communicator, SumsInATreeAndGathersWhatEachOwns) {
  for (int size : {1, 2, 3, 4}) {
    const int64_t part = 300000, count = size * part;  // more than one piece
    const std::vector<float> expected = tree_sum(size, count);
    expect_no_error(on_ranks(size, 60, [&](Channel& channel) {
      const auto ranks = make_communicator(channel, Device::cpu);
      std::vector<float> values = numbers(static_cast<uint64_t>(channel.rank()), count);
      const View all(values.data(), {count});
      ranks->reduce_scatter(all);
      const auto mine = static_cast<size_t>(channel.rank() * part);
      EXPECT_EQ(std::memcmp(&values[mine], &expected[mine], part * sizeof(float)), 0);
      ranks->all_gather(all);
      EXPECT_EQ(std::memcmp(values.data(), expected.data(), expected.size() * sizeof(float)), 0);
    }));
  }
}

TEST(Communicator, CarriesSmallThings) {
  expect_no_error(on_ranks(3, 60, [](Channel& channel) {
    const auto ranks = make_communicator(channel, Device::cpu);
    const int rank = channel.rank();
    std::string text;
    text.assign(static_cast<size_t>(rank), 'x');
    EXPECT_EQ(ranks->gather(text, "texts"), (std::vector<std::string>{"", "x", "xx"}));
    EXPECT_EQ(ranks->gather(std::vector<double>{rank + 0.5}, "numbers"),
              (std::vector<double>{0.5, 1.5, 2.5}));
    EXPECT_EQ(ranks->from_root(rank == 0 ? "word" : "", "a word"), "word");
    EXPECT_FALSE(ranks->any(false, "a vote"));
    EXPECT_TRUE(ranks->any(rank == 2, "a vote"));

    std::vector<float> weights = numbers(static_cast<uint64_t>(rank), 10);
    ranks->broadcast(View(weights.data(), {10}));
    EXPECT_EQ(weights, numbers(0, 10));

    std::vector<float> part(2, static_cast<float>(rank)), all(6);
    const View whole = rank == 0 ? View(all.data(), {6}) : View();
    ranks->collect(View(part.data(), {2}), whole, "parts");
    if (rank == 0) {
      EXPECT_EQ(all, (std::vector<float>{0, 0, 1, 1, 2, 2}));
    }
    for (float& x : all) x += 10;
    ranks->distribute(whole, View(part.data(), {2}), "parts");
    EXPECT_EQ(part, std::vector<float>(2, static_cast<float>(rank + 10)));
  }));
}

TEST(Communicator, NamesTheRankThatDiffers) {
  const auto thrown = on_ranks(3, 60, [](Channel& channel) {
    const auto ranks = make_communicator(channel, Device::cpu);
    require_same(*ranks, {{"the program", "1"}, {"optim.lr", "0.1"}});
    require_same(*ranks, {{"the program", "1"},
                          {"the training set", channel.rank() == 2 ? "b" : "a", Exit::data}});
  });
  for (const auto& t : thrown) {
    EXPECT_NE(text_of(t).find("rank 2 on "), std::string::npos) << text_of(t);
    EXPECT_NE(text_of(t).find("the training set is 'b' there, 'a' on rank 0"), std::string::npos);
  }
}

// -------------------------------------------------------------------------------------- optimizer

TEST(Partition, CoversTheBuffersInAlignedSlices) {
  for (int64_t n : {1, 63, 64, 1000, 37123, 516938701}) {
    EXPECT_EQ(Partition(n, 1, false).flat_size, n);
    int64_t strict_size = 0;
    for (int ranks : {1, 2, 3, 4, 8, 64}) {
      for (bool strict : {false, true}) {
        if (strict && ranks == 3) continue;
        const Partition p(n, ranks, strict);
        EXPECT_EQ(p.flat_size, p.slice * ranks);
        EXPECT_GE(p.flat_size, n);
        EXPECT_EQ(p.slice % p.norm_blocks, 0);
        EXPECT_LT(p.flat_size - n, 64 * (strict ? 2 * Partition::kStrictBlocks : ranks));
        if (ranks > 1) {
          EXPECT_EQ(p.slice % 64, 0);
        }
        if (!strict) continue;
        EXPECT_EQ(p.norm_blocks * ranks, Partition::kStrictBlocks);
        if (ranks == 1) strict_size = p.flat_size;
        EXPECT_EQ(p.flat_size, strict_size);  // the blocks are the same for any number of ranks
      }
    }
  }
}

struct Trained {
  std::vector<float> weights, state;
  double norm = 0;
  int64_t memory = 0;  // of the optimizer, on one rank
};

// A few updates of made-up weights, the gradient of each rank being a share of the whole.
Trained update_on(int size) {
  ParameterTable table;
  table.add({.name = "a", .shape = {70, 10}, .init = {}, .matrix = true});
  table.add({.name = "frozen", .shape = {33}, .init = {}, .trained = false}, true);
  table.add({.name = "b", .shape = {300}, .init = {}}, true);
  Config config;
  config.optim.decay = "matrices";
  config.train.grad_clip = 0.5;
  Trained result;
  expect_no_error(on_ranks(size, 60, [&](Channel& channel) {
    const auto ranks = make_communicator(channel, Device::cpu);
    Optimizer optimizer(config, table, *ranks);
    Runtime runtime(Device::cpu, 1);
    Weights weights;
    View gradients;
    runtime.set_up(
        [&] {
          weights = runtime.allocate_weights(table, optimizer.flat_size());
          gradients = runtime.memory["gradients"].allocate(DType::f32, {optimizer.flat_size()});
          optimizer.allocate(runtime);
        },
        [&] {
          optimizer.sum_gradients(runtime.context, gradients);
          optimizer.update(runtime.context, weights, gradients, 0, 1);
        });
    zero_fill(runtime.context, weights.master);
    const std::vector<float> start = numbers(7, table.flat_size());
    std::copy(start.begin(), start.end(), weights.master.as<float>());
    optimizer.reset(runtime.context);
    double norm = 0;
    for (int64_t t = 1; t <= 3; ++t) {
      zero_fill(runtime.context, gradients);
      const std::vector<float> g = numbers(100 + static_cast<uint64_t>(t), table.flat_size());
      for (size_t i = 0; i < g.size(); ++i)  // the shares of 2 and 4 ranks add up exactly
        gradients.as<float>()[i] = g[i] / static_cast<float>(size);
      norm = optimizer.sum_gradients(runtime.context, gradients);
      optimizer.update(runtime.context, weights, gradients, 1e-2, t);
    }
    optimizer.pull();
    if (channel.rank() != 0) return;
    result.norm = norm;
    result.memory = runtime.memory["optimizer"].capacity();
    result.weights.assign(weights.master.as<float>(),
                          weights.master.as<float>() + table.flat_size());
    for (const NamedView& tensor : optimizer.tensors())
      result.state.insert(result.state.end(), tensor.view.as<float>(),
                          tensor.view.as<float>() + tensor.view.size());
  }));
  return result;
}

TEST(Optimizer, SlicesGiveWhatTheWholeGives) {
  const Trained whole = update_on(1);
  ASSERT_GT(whole.norm, 0.5);  // clipping is at work
  for (int size : {2, 4}) {
    const Trained sliced = update_on(size);
    EXPECT_NEAR(sliced.norm, whole.norm, 1e-12 * whole.norm);
    ASSERT_EQ(sliced.weights.size(), whole.weights.size());
    for (size_t i = 0; i < whole.weights.size(); ++i)
      EXPECT_NEAR(sliced.weights[i], whole.weights[i], 1e-6) << i;
    ASSERT_EQ(sliced.state.size(), whole.state.size());
    for (size_t i = 0; i < whole.state.size(); ++i)
      EXPECT_NEAR(sliced.state[i], whole.state[i], 1e-6) << i;
    EXPECT_LT(sliced.memory, whole.memory / size + 1024);
  }
}

}  // namespace
}  // namespace kla
