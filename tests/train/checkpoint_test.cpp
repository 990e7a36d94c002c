// What a checkpoint holds and how long it is kept; damage of every kind is refused by name and the
// checkpoint before is taken.
#include "train/checkpoint.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <filesystem>

#include "core/log.h"
#include "core/philox.h"
#include "tests/train/scratch.h"
#include "tests/train/toy_checkpoint.h"

namespace kla::testing {
namespace {

namespace fs = std::filesystem;

const std::vector<std::string> kFiles = {"manifest.json", "model.safetensors",
                                         "optim.rank0000.safetensors", "state.json"};

TEST(TrainStateJson, EveryFieldComesBackBitForBit) {
  TrainState state;
  state.step = 1;
  state.updates = 2;
  state.tokens = int64_t{1} << 62;
  state.previous_tokens = 4;
  state.next_sample = ~uint64_t{0};
  state.evaluated_step = -6;
  state.guard = {7, 8};
  state.loss_sum = 0.1 + 0.2;
  state.loss_tokens = 9;
  state.train_seconds = 5e-324;
  state.run_seed = uint64_t{1} << 63;
  state.shuffle_seed = 10;
  state.config_hash = "a\"\\\n\xc3\xa9";
  state.data_identity = "b";
  state.tokenizer_sha256 = "c";
  // Stops compiling when a field is added: give it a value above.
  [[maybe_unused]] const auto& [f1, f2, f3, f4, f5, f6, f7, f8, f9, f10, f11, f12, f13, f14, f15] =
      state;
  const std::string text = to_json(state);
  EXPECT_EQ(train_state_from_json(text, "here"), state);
  EXPECT_TRUE(std::all_of(text.begin(), text.end(), [](char c) { return c > 0; })) << text;

  for (double odd : {-0.0, HUGE_VAL, std::nan("")}) {
    state.loss_sum = odd;
    const double back = train_state_from_json(to_json(state), "here").loss_sum;
    EXPECT_EQ(std::bit_cast<uint64_t>(back), std::bit_cast<uint64_t>(odd));
  }
}

TEST(TrainStateJson, RefusesWhatIsNoState) {
  const std::string good = to_json(TrainState());
  for (const std::string& bad :
       {std::string(), std::string("{}"), std::string("[]"), good.substr(0, good.size() / 2),
        std::string(good).replace(good.find("0x"), 3, "0xz"),
        std::string(good).replace(good.find("0x"), 2, "0xffffffff")})
    EXPECT_REFUSED(Exit::data, "'here' is not a training state",
                   train_state_from_json(bad, "here"));
}

class Checkpoints : public ::testing::Test {
 protected:
  void SetUp() override { log::set_terminal_level(log::Level::error); }
  void TearDown() override { log::set_terminal_level(log::Level::info); }

  std::string file(int64_t step, const std::string& name) const {
    char folder[32];
    std::snprintf(folder, sizeof(folder), "/step-%08lld/", static_cast<long long>(step));
    return directory_ + folder + name;
  }
  std::string refusal(int64_t step) const {
    const Checkpoint checkpoint{fs::path(file(step, "x")).parent_path(), step};
    const Caught error = caught([&] { CheckpointStore::verify(checkpoint); });
    EXPECT_NE(error.code, Exit::ok);
    return error.message;
  }
  // The damage is found, its file is named, and the checkpoint before is taken.
  void expect_fallback(const std::string& name, const std::string& what) const {
    const std::string message = refusal(20);
    EXPECT_NE(message.find(name), std::string::npos) << what << ": " << message;
    EXPECT_EQ(newest_loadable_step(directory_), 10) << what;
  }

  ScratchDirectory scratch_;
  std::string directory_ = scratch_ / "checkpoints";
};

TEST_F(Checkpoints, RoundTrip) {
  EXPECT_TRUE(steps_in(directory_).empty());
  EXPECT_FALSE(CheckpointStore(directory_).ever_held_one());
  EXPECT_FALSE(CheckpointStore(directory_).newest_valid());
  save_step(directory_, 10);
  EXPECT_EQ(newest_loadable_step(directory_), 10);
  EXPECT_TRUE(CheckpointStore(directory_).ever_held_one());
  EXPECT_EQ(read_file(directory_ + "/latest"), "step-00000010\n");
  save_step(directory_, 20);
  EXPECT_EQ(newest_loadable_step(directory_), 20);
}

TEST_F(Checkpoints, TheSameStateGivesTheSameFiles) {
  save_step(directory_, 10);
  save_step(scratch_ / "again", 10);
  for (const std::string& name : kFiles)
    EXPECT_EQ(read_file(file(10, name)), read_file(scratch_ / ("again/step-00000010/" + name)));
}

TEST_F(Checkpoints, KeepsTheLastAndTheFirstOfEveryInterval) {
  CheckpointConfig keep{.keep_last = 3, .keep_every_tokens = 25 * kTokensPerStep};
  for (int64_t step = 10; step <= 100; step += 10) save_step(directory_, step, keep);
  // First at or beyond 25, 50, 75 and 100 times the tokens of a step, and the last three.
  EXPECT_EQ(steps_in(directory_), (std::vector<int64_t>{100, 90, 80, 50, 30}));
  keep.keep_every_tokens = 0;
  keep.keep_last = 1;  // never fewer than two
  save_step(directory_, 110, keep);
  EXPECT_EQ(steps_in(directory_), (std::vector<int64_t>{110, 100}));
}

TEST_F(Checkpoints, ADamagedOneDoesNotTakeThePlaceOfAGoodOne) {
  for (int64_t step : {10, 20, 30}) save_step(directory_, step);
  write_file(file(30, "state.json"), "");
  EXPECT_EQ(newest_loadable_step(directory_), 20);
  save_step(directory_, 25);
  EXPECT_EQ(steps_in(directory_), (std::vector<int64_t>{25, 20}));
}

TEST_F(Checkpoints, ADamagedOneOfTheSameStepIsReplaced) {
  for (int64_t step : {10, 20}) save_step(directory_, step);
  write_file(file(20, "state.json"), "");
  save_step(directory_, 20);
  EXPECT_EQ(newest_loadable_step(directory_), 20);
}

TEST_F(Checkpoints, EverHeldOneOutlivesTheCheckpoints) {
  save_step(directory_, 10);
  fs::remove_all(directory_ + "/step-00000010");
  EXPECT_TRUE(CheckpointStore(directory_).ever_held_one());
  EXPECT_FALSE(CheckpointStore(directory_).newest_valid());
}

TEST_F(Checkpoints, AnUnreadableDirectoryIsNotAnEmptyOne) {
  write_file(directory_, "a file where a directory should be");
  EXPECT_REFUSED(Exit::io, "cannot read", CheckpointStore(directory_).ever_held_one());
  EXPECT_REFUSED(Exit::io, "checkpoints", save_step(directory_, 10));
}

TEST_F(Checkpoints, ForeignNamesAreNoCheckpoints) {
  save_step(directory_, 10);
  for (const char* name : {"step-10", "step-000000010", "step-99999999999999999999999",
                           "step-00000020.old", "step- 0000020", "export"})
    fs::create_directory(directory_ + "/" + name);
  EXPECT_EQ(steps_in(directory_), (std::vector<int64_t>{10}));
}

TEST_F(Checkpoints, RemovesLeftoversOnly) {
  save_step(directory_, 10);
  for (const char* name : {"/.tmp-step-00000020", "/.trash-step-00000005"}) {
    fs::create_directory(directory_ + name);
    write_file(directory_ + name + "/state.json", "half");
  }
  CheckpointStore(directory_).remove_leftovers();
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_), {}), 2);
  EXPECT_EQ(newest_loadable_step(directory_), 10);
}

TEST_F(Checkpoints, EveryFlippedBitIsFound) {
  save_step(directory_, 10);
  save_step(directory_, 20);
  const RandomStream random(1, "bit flips");
  for (uint64_t trial = 0; trial < 800; ++trial) {
    const std::string& name = kFiles[trial % kFiles.size()];
    const std::string good = read_file(file(20, name));
    const uint64_t bit = random.bits(trial) % (8 * good.size());
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    write_file(file(20, name), bad);
    expect_fallback(name, "bit " + std::to_string(bit));
    write_file(file(20, name), good);
  }
  EXPECT_EQ(newest_loadable_step(directory_), 20);
}

TEST_F(Checkpoints, DamagedFilesAreFound) {
  save_step(directory_, 10);
  save_step(directory_, 20);
  for (const std::string& name : kFiles) {
    const std::string good = read_file(file(20, name)), zeros(good.size(), '\0');
    for (const std::string& bad :
         {std::string(), good.substr(0, 1), good.substr(0, good.size() / 2),
          good.substr(0, good.size() - 1), good + '\n', zeros, read_file(file(10, name))}) {
      write_file(file(20, name), bad);
      const bool foreign = name == "manifest.json" && bad == read_file(file(10, name));
      expect_fallback(foreign ? "another step" : name, name + " " + std::to_string(bad.size()));
    }
    fs::remove(file(20, name));
    expect_fallback(name + " is missing", name);
    fs::create_directory(file(20, name));
    expect_fallback(name + " is missing", name);
    fs::remove(file(20, name));
    write_file(file(20, name), good);
  }
  EXPECT_EQ(newest_loadable_step(directory_), 20);
}

TEST_F(Checkpoints, FilesThatDoNotBelongThereAreFound) {
  save_step(directory_, 10);
  save_step(directory_, 20);
  write_file(file(20, "optim.rank0001.safetensors"), "");
  expect_fallback("'optim.rank0001.safetensors' does not belong there", "extra");
  fs::remove(file(20, "optim.rank0001.safetensors"));
  fs::rename(file(20, "model.safetensors"), file(20, "x"));
  fs::rename(file(20, "optim.rank0000.safetensors"), file(20, "model.safetensors"));
  fs::rename(file(20, "x"), file(20, "optim.rank0000.safetensors"));
  expect_fallback("model.safetensors", "swapped");
}

TEST_F(Checkpoints, ACheckpointUnderAnotherNameIsFound) {
  save_step(directory_, 10);
  fs::copy(directory_ + "/step-00000010", directory_ + "/step-00000020");
  expect_fallback("manifest.json is of another step", "copy");
}

TEST_F(Checkpoints, AHostileManifestIsRefused) {
  save_step(directory_, 10);
  save_step(directory_, 20);
  for (const std::string& bad :
       {"{\"files\": " + std::string(400'000, '[') + std::string(400'000, ']') + "}",
        std::string(2 << 20, ' '), std::string("null"), std::string("{}\n"),
        std::string("\0{}", 3)}) {
    write_file(file(20, "manifest.json"), bad);
    expect_fallback("manifest.json", bad.substr(0, 12));
  }
}

TEST_F(Checkpoints, TheWarningNamesTheFault) {
  save_step(directory_, 10);
  save_step(directory_, 20);
  write_file(file(20, "model.safetensors"), "");
  log::set_terminal_level(log::Level::info);
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(newest_loadable_step(directory_), 10);
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("step-00000020': model.safetensors has the wrong size"), std::string::npos)
      << said;
}

TEST_F(Checkpoints, WeightsThatAreNotFiniteAreNotLoaded) {
  for (const float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
    std::vector<float> values = {1, bad, 3};
    const std::vector<NamedView> tensors = {{"w", View(values.data(), {3})}};
    const std::string directory = scratch_ / std::to_string(bad);
    const CheckpointStore store(directory);
    store.save(tensors, tensors, toy_state(1), {});
    EXPECT_REFUSED(Exit::data, "tensor 'w' is not finite",
                   CheckpointStore::load_model(store.list().at(0), tensors));
    EXPECT_REFUSED(Exit::data, "tensor 'w' is not finite",
                   CheckpointStore::load_optimizer(store.list().at(0), tensors));
  }
}

}  // namespace
}  // namespace kla::testing
