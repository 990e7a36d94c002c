// Wrong words, files and folders: an exit code that scripts can rely on, and a line that names what
// is wrong.
#include "tests/faults/micro_run.h"

namespace kla::testing {
namespace {

class BadInput : public MicroRun {
 protected:
  // A copy of the prepared data to damage.
  static std::string copy_of_data(const std::string& name) {
    std::filesystem::copy(at("data"), at(name), std::filesystem::copy_options::recursive);
    return name;
  }
  static std::string shard_of(const std::string& split) {
    for (const auto& entry : std::filesystem::directory_iterator(split))
      if (entry.path().filename() != "dataset.json") return entry.path();
    throw Error(Exit::internal, "no shard in " + split);
  }
  static ProgramEnd train_on(const std::string& data) {
    return kla(train("on_" + data, {"data.train=" + data + "/train", "data.val=" + data + "/val"}));
  }
};

TEST_F(BadInput, CommandLine) {
  expect_error(kla({"trian"}), 2, "unknown command 'trian'");
  expect_error(kla({"train"}), 2, "give either a config or --resume RUN");
  expect_error(kla({"train", "micro.yaml", "--frobnicate"}), 2, "--frobnicate");
  expect_error(kla({"train", "absent.yaml"}), 2, "absent.yaml");
  EXPECT_EQ(kla({"--help"}).exit_code, 0);
  EXPECT_EQ(kla({}).exit_code, 2);
}

TEST_F(BadInput, Config) {
  expect_error(kla(train("x", {"model.hiden_size=64"})), 2, "unknown key 'model.hiden_size'");
  expect_error(kla(train("x", {"optim.lr=fast"})), 2, "'optim.lr' expects a number");
  expect_error(kla(train("x", {"train.global_batch_tokens=200"})), 2, "train.global_batch_tokens");
  EXPECT_FALSE(file_exists(at("x"))) << "nothing is started";
  write_file(at("wrong.yaml"), "run: {name: wrong}\nmodel:\n  hiden_size: 64\n");
  const ProgramEnd end = kla({"train", "wrong.yaml"});
  expect_error(end, 2, "wrong.yaml:3");
  EXPECT_NE(end.errors.find("did you mean 'model.hidden_size'"), std::string::npos) << end.errors;
}

TEST_F(BadInput, AnotherConfigForAnOldRun) {
  const ProgramEnd end = kla(train("reference", {"optim.lr=1e-3"}));
  expect_error(end, 2, "was started with another config");
  EXPECT_NE(end.errors.find("optim.lr"), std::string::npos);
}

TEST_F(BadInput, AConfigThatNeverStartedDoesNotBindTheRunDirectory) {
  const std::string small = "model.vocab_size=256";
  expect_error(kla(train("corrected", {small})), 3, "the model's vocab_size is 256");
  const ProgramEnd end = kla(train("corrected"));
  ASSERT_EQ(end.exit_code, 0) << end.errors;
  expect_result_of_reference(at("corrected"));
}

TEST_F(BadInput, Corpus) {
  expect_error(kla({"data", "prepare", "prepare.yaml", "inputs=[absent]", "output=d"}), 4,
               "absent");
  expect_error(kla({"data", "check", "absent"}), 4, "absent");
  expect_error(train_on("absent"), 4, "absent/train");
  expect_error(kla(train("same", {"data.val=data/train"})), 2, "the same tokens as data.train");
}

TEST_F(BadInput, DamagedShards) {
  const std::string cut = shard_of(at(copy_of_data("cut")) + "/train");
  std::filesystem::resize_file(cut, std::filesystem::file_size(cut) - 100);
  expect_error(train_on("cut"), 3, cut.substr(at("").size()));
  expect_error(kla({"data", "check", "cut"}), 3, "cut/train");

  const std::string flipped = shard_of(at(copy_of_data("flipped")) + "/train");
  std::string bytes = read_file(flipped);
  bytes[5000] = static_cast<char>(bytes[5000] ^ 1);
  write_file(flipped, bytes);
  expect_error(train_on("flipped"), 3, flipped.substr(at("").size()));

  std::filesystem::remove(shard_of(at(copy_of_data("gone")) + "/train"));
  EXPECT_NE(train_on("gone").exit_code, 0);
}

TEST_F(BadInput, WrongTokenizer) {
  ASSERT_EQ(kla({"data", "prepare", "prepare.yaml", "output=other", "tokenizer.vocab_size=390"})
                .exit_code,
            0);
  copy_of_data("mixed");
  std::filesystem::copy_file(at("other/tokenizer.model"), at("mixed/tokenizer.model"),
                             std::filesystem::copy_options::overwrite_existing);
  expect_error(train_on("mixed"), 3, "mixed/tokenizer.model");
  expect_error(kla(train("two", {"data.val=other/val"})), 3, "another tokenizer");

  copy_of_data("later");
  ASSERT_EQ(train_on("later").exit_code, 0);
  std::filesystem::copy_file(at("other/tokenizer.model"), at("later/tokenizer.model"),
                             std::filesystem::copy_options::overwrite_existing);
  expect_error(kla({"generate", "on_later", "--prompt", "the"}), 3, "later/tokenizer.model");
  expect_error(kla({"eval", "on_later"}), 3, "tokenizer.model");
}

TEST_F(BadInput, AFolderThatIsNoRun) {
  for (const char* command : {"eval", "generate", "report"}) {
    expect_error(kla({command, "data"}), 2, "'data'");
    expect_error(kla({command, "absent"}), 2, "'absent'");
  }
  expect_error(kla({"train", "--resume", "data"}), 2, "'data' is not a run directory");
  expect_error(kla({"eval", "reference", "--checkpoint", "step-00000001"}), 3, "step-00000001");
}

}  // namespace
}  // namespace kla::testing
