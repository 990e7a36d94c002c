#include "data/loader.h"

#include <algorithm>
#include <set>

#include "core/hash.h"
#include "data/dataset_writer.h"
#include "data_fixture.h"

namespace kla {
namespace {

class LoaderTest : public DataTest {
 protected:
  // Tokens 0, 1, 2, ... so that a token tells its place; documents of 5 tokens.
  TokenDataset counting(int64_t tokens) {
    DatasetWriter writer(path("d"), 100000, sha256_hex("t"), 64);
    for (int64_t first = 0; first < tokens; first += 5) {
      std::vector<int32_t> ids;
      for (int64_t i = first; i < std::min(first + 5, tokens); ++i)
        ids.push_back(static_cast<int32_t>(i));
      writer.add_document(ids.data(), static_cast<int64_t>(ids.size()), 1);
    }
    writer.finish({});
    return TokenDataset::open(path("d"), 0, Verify::headers);
  }
};

struct Sample {
  std::vector<int32_t> tokens, targets;
  std::vector<uint8_t> reset;
};

Sample sample_of(const Loader& loader, uint64_t index) {
  const auto T = static_cast<size_t>(loader.seq_len());
  Sample s{std::vector<int32_t>(T, 77), std::vector<int32_t>(T, 77), std::vector<uint8_t>(T, 77)};
  loader.sample(index, s.tokens.data(), s.targets.data(), s.reset.data());
  return s;
}

TEST_F(LoaderTest, EveryTokenButTheFirstIsATargetOnceAnEpoch) {
  for (const int64_t tokens : {2, 16, 17, 18, 203}) {
    std::filesystem::remove_all(path("d"));
    const TokenDataset data = counting(tokens);
    const Loader loader(data, 16, 7, false);
    const int64_t samples = loader.samples_per_epoch();
    EXPECT_EQ(samples, (tokens - 1 + 15) / 16);
    for (uint64_t epoch = 0; epoch < 3; ++epoch) {
      std::vector<int> seen(static_cast<size_t>(tokens), 0);
      int64_t targets = 0;
      for (uint64_t i = 0; i < static_cast<uint64_t>(samples); ++i) {
        const uint64_t index = epoch * static_cast<uint64_t>(samples) + i;
        const Sample s = sample_of(loader, index);
        targets += loader.targets_in(index);
        EXPECT_EQ(
            std::count_if(s.targets.begin(), s.targets.end(), [](int32_t t) { return t >= 0; }),
            loader.targets_in(index));
        for (size_t t = 0; t < 16; ++t) {
          if (s.targets[t] < 0) {
            EXPECT_EQ(s.targets[t], -1);
            EXPECT_EQ(s.tokens[t], 0);
            continue;
          }
          EXPECT_EQ(s.targets[t], s.tokens[t] + 1);
          ++seen[static_cast<size_t>(s.targets[t])];
        }
      }
      EXPECT_EQ(targets, loader.targets_per_epoch());
      EXPECT_EQ(seen[0], 0);
      EXPECT_TRUE(std::all_of(seen.begin() + 1, seen.end(), [](int n) { return n == 1; }));
    }
  }
}

TEST_F(LoaderTest, OrderDependsOnSeedAndEpochOnly) {
  const TokenDataset data = counting(2000);
  const Loader a(data, 16, 7, false), b(data, 16, 7, false), other(data, 16, 8, false);
  const auto samples = static_cast<uint64_t>(a.samples_per_epoch());
  std::set<std::vector<int64_t>> orders;
  for (uint64_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<int64_t> order, other_order;
    for (uint64_t i = 0; i < samples; ++i) {
      order.push_back(a.window_of(epoch * samples + i));
      other_order.push_back(other.window_of(epoch * samples + i));
    }
    orders.insert(order);
    orders.insert(other_order);
    EXPECT_FALSE(std::is_sorted(order.begin(), order.end()));
  }
  EXPECT_EQ(orders.size(), 6u) << "each seed and each epoch has an order of its own";
  // Read back to front, as another split over ranks and micro-batches would: the same samples.
  for (uint64_t i = 2 * samples; i-- > 0;) {
    const Sample s = sample_of(b, i);
    EXPECT_EQ(s.tokens[0], a.window_of(i) * 16);
  }
}

TEST_F(LoaderTest, ResetFlagsMarkDocumentsInsideTheWindow) {
  const TokenDataset data = counting(203);
  const Loader with(data, 16, 7, true), without(data, 16, 7, false);
  for (uint64_t i = 0; i < static_cast<uint64_t>(with.samples_per_epoch()); ++i) {
    const Sample s = sample_of(with, i);
    const int64_t targets = with.targets_in(i);
    for (int64_t t = 0; t < 16; ++t) {
      const bool start = t > 0 && t < targets && s.tokens[static_cast<size_t>(t)] % 5 == 0;
      EXPECT_EQ(s.reset[static_cast<size_t>(t)], start ? 1 : 0) << "sample " << i << " at " << t;
    }
    const Sample plain = sample_of(without, i);
    EXPECT_EQ(plain.tokens, s.tokens);
    EXPECT_EQ(plain.targets, s.targets) << "targets across a boundary count in either case";
    EXPECT_EQ(plain.reset, std::vector<uint8_t>(16, 0));
  }
}

TEST_F(LoaderTest, NeedsTwoTokens) {
  const TokenDataset data = counting(1);
  error_of(Exit::data, [&] { Loader(data, 16, 7, false); });
}

}  // namespace
}  // namespace kla
