// The format's rules, one by one, with the failing vectors of its reference suite.
#include "train/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <limits>

#include "core/hash.h"
#include "tests/train/scratch.h"

namespace kla::testing {
namespace {

class Safetensors : public ::testing::Test {
 protected:
  static std::string with_length(uint64_t length, const std::string& rest) {
    std::string file(8, '\0');
    std::memcpy(file.data(), &length, 8);
    return file + rest;
  }
  static std::string with_header(const std::string& header, size_t data_bytes = 0) {
    return with_length(header.size(), header + std::string(data_bytes, '\1'));
  }
  static std::string tensor(const std::string& entry, size_t data_bytes) {
    return with_header("{\"t\":" + entry + "}", data_bytes);
  }
  Caught open(const std::string& content) {
    write_file(path_, content);
    return caught([&] { SafetensorsFile::open(path_); });
  }
  void expect_refused(const std::string& content, const std::string& words) {
    const Caught error = open(content);
    EXPECT_EQ(error.code, Exit::data) << words;
    EXPECT_NE(error.message.find(words), std::string::npos) << error.message;
    EXPECT_NE(error.message.find(path_), std::string::npos) << error.message;
  }
  void expect_accepted(const std::string& content) {
    const Caught error = open(content);
    EXPECT_EQ(error.code, Exit::ok) << error.message;
  }

  ScratchDirectory scratch_;
  std::string path_ = scratch_ / "t.safetensors";
};

TEST_F(Safetensors, RoundTripOfEveryType) {
  std::vector<double> f64 = {1.0 / 3, -0.0, std::numeric_limits<double>::infinity()};
  std::vector<float> f32 = {1.5f, 2.5f, 3.5f, 4.5f, 5.5f, 6.5f};
  std::vector<uint16_t> bf16 = {0x3F80, 0x7FC0};
  std::vector<int64_t> i64 = {std::numeric_limits<int64_t>::min()};
  std::vector<int32_t> i32 = {-1, 2};
  std::vector<uint8_t> u8 = {1, 2, 255};
  auto views = [&] {
    return std::vector<NamedView>{
        {"u8", View(u8.data(), {3})},        {"f32", View(f32.data(), {2, 1, 3})},
        {"empty", View(f32.data(), {2, 0})}, {"bf16", View(bf16.data(), DType::bf16, {2})},
        {"i32", View(i32.data(), {2})},      {"f64", View(f64.data(), {3})},
        {"i64", View(i64.data(), {1})}};
  };
  const WrittenFile written = write_safetensors(path_, views(), {{"step", "7"}});
  const std::string content = read_file(path_);
  EXPECT_EQ(written.bytes, static_cast<int64_t>(content.size()));
  EXPECT_EQ(written.xxh3_128, xxh3_128_hex(content.data(), content.size()));

  const auto before = std::tuple(f64, f32, bf16, i64, i32, u8);
  for (const NamedView& tensor : views())
    std::memset(tensor.view.data, 0x55, static_cast<size_t>(tensor.view.bytes()));
  const SafetensorsFile file = SafetensorsFile::open(path_);
  file.read_all(views());
  EXPECT_EQ(std::tuple(f64, f32, bf16, i64, i32, u8), before);
  EXPECT_EQ(file.metadata().at("step"), "7");
  EXPECT_EQ(file.metadata().at("format"), "pt");  // readers of the field insist on it
}

TEST_F(Safetensors, LayoutOnDisk) {
  float w[2] = {1, 2};
  uint8_t a = 9;
  write_safetensors(path_, {{"a", View(&a, {1})}, {"w", View(w, {2})}}, {});
  const std::string content = read_file(path_);
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
      R"("a":{"dtype":"U8","shape":[1],"data_offsets":[8,9]}})";
  EXPECT_EQ(content.substr(8, header.size()), header);
  uint64_t length = 0;
  std::memcpy(&length, content.data(), 8);
  EXPECT_EQ(length % 8, 0u);
  EXPECT_EQ(content.substr(8 + header.size(), length - header.size()).find_first_not_of(' '),
            std::string::npos);
  EXPECT_EQ(content.size(), 8 + length + 9);
}

TEST_F(Safetensors, NeverOverwrites) {
  write_safetensors(path_, {}, {});
  EXPECT_REFUSED(Exit::io, "cannot create", write_safetensors(path_, {}, {}));
}

TEST_F(Safetensors, AcceptsWhatTheReferenceAccepts) {
  expect_accepted(with_header("{}"));
  expect_accepted(with_header("  \n{}"));  // leading white space aligns pages
  expect_accepted(with_header("{}   "));
  expect_accepted(tensor(R"({"dtype":"F32","shape":[2,0],"data_offsets":[0,0]})", 0));
  expect_accepted(tensor(R"({"dtype":"F32","shape":[],"data_offsets":[0,4]})", 4));
  expect_accepted(tensor(R"({"data_offsets":[0,4],"shape":[1],"dtype":"F32"})", 4));
}

TEST_F(Safetensors, RefusesBrokenLengths) {
  expect_refused("", "shorter than 8 bytes");
  expect_refused("1234567", "shorter than 8 bytes");
  expect_refused(with_length(0, ""), "not a JSON object");
  expect_refused(with_length(0xffffff000000003c, "{}"), "more than 100 MB");
  expect_refused(with_length(100'000'001, "{}"), "more than 100 MB");
  expect_refused(with_length(1000, "{}"), "longer than the file");
}

TEST_F(Safetensors, RefusesBrokenJson) {
  for (const std::string& header :
       {std::string("\xff"), std::string("{"), std::string("[]"), std::string("null"),
        std::string("{}{}"), std::string("{}x"), std::string("\xEF\xBB\xBF{}"),
        std::string("{}\0", 3), std::string("{\"\xff\":{}}"), std::string("{\"a\":}"),
        std::string("// c\n{}")})
    expect_refused(with_header(header), "is not a valid safetensors file");
  expect_refused(with_header(std::string(1'000'000, '[')), "not a JSON object");
  std::string nested;
  for (int i = 0; i < 100'000; ++i) nested += "{\"shape\":";
  expect_refused(with_header(nested), "an object inside a tensor's entry");
}

TEST_F(Safetensors, RefusesBrokenEntries) {
  expect_refused(with_header(R"({"t":1})"), "a number out of place");
  expect_refused(with_header(R"({"t":"x"})"), "a string out of place");
  expect_refused(with_header(R"({"t":null})"), "null");
  expect_refused(tensor(R"({"dtype":"F32","shape":[1]})", 4), "without dtype, shape");
  expect_refused(tensor(R"({"dtype":"F33","shape":[1],"data_offsets":[0,4]})", 4), "type 'F33'");
  expect_refused(tensor(R"({"dtype":1,"shape":[1],"data_offsets":[0,4]})", 4), "out of place");
  expect_refused(tensor(R"({"dtype":"F32","shape":1,"data_offsets":[0,4]})", 4), "out of place");
  expect_refused(tensor(R"({"dtype":"F32","shape":["1"],"data_offsets":[0,4]})", 4),
                 "out of place");
  expect_refused(tensor(R"({"dtype":"F32","shape":[[1]],"data_offsets":[0,4]})", 4),
                 "out of place");
  expect_refused(tensor(R"({"dtype":"F32","shape":[true],"data_offsets":[0,4]})", 4), "boolean");
  expect_refused(tensor(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})", 4), "negative");
  expect_refused(tensor(R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})", 4), "fraction");
  expect_refused(tensor(R"({"dtype":"F32","shape":[1e0],"data_offsets":[0,4]})", 4), "fraction");
  expect_refused(tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[4]})", 4), "not two numbers");
  expect_refused(tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4,8]})", 4), "not two");
  expect_refused(tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1})", 4),
                 "the unknown field 'x'");
  expect_refused(tensor(R"({"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]})", 4),
                 "the field 'dtype' twice");
}

TEST_F(Safetensors, RefusesBrokenNamesAndMetadata) {
  const std::string entry = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  expect_refused(with_header("{\"t\":" + entry + ",\"t\":" + entry + "}"), "the name 't' twice");
  expect_refused(with_header("{\"\":" + entry + "}"), "empty or too long");
  expect_refused(with_header("{\"" + std::string(513, 'n') + "\":" + entry + "}"), "too long");
  expect_refused(with_header(R"({"a\u001b[2J":)" + entry + "}"), "control characters");
  expect_refused(with_header(R"({"a\u0000":)" + entry + "}"), "control characters");
  expect_refused(with_header(R"({"__metadata__":{"a":1}})"), "a number out of place");
  expect_refused(with_header(R"({"__metadata__":{"a":{}}})"), "an object inside");
  expect_refused(with_header(R"({"__metadata__":{"a":"1","a":"2"}})"),
                 "the metadata key 'a' twice");
  expect_refused(with_header(R"({"__metadata__":{},"__metadata__":{}})"), "twice");
  expect_refused(with_header(R"({"__metadata__":["a"]})"), "an array out of place");
}

TEST_F(Safetensors, RefusesBrokenLayouts) {
  const std::string size = "does not equal its shape's";
  for (const char* entry :
       {R"({"dtype":"F32","shape":[2,18446744073709551614],"data_offsets":[0,16]})",
        R"({"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,16]})",
        R"({"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,16]})",
        R"({"dtype":"F32","shape":[2,9223372036854775807],"data_offsets":[0,16]})",
        R"({"dtype":"F32","shape":[2,2],"data_offsets":[0,4]})",
        R"({"dtype":"F32","shape":[4],"data_offsets":[16,0]})",
        R"({"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[1,0]})"})
    EXPECT_EQ(open(tensor(entry, 16)).code, Exit::data) << entry;
  expect_refused(tensor(R"({"dtype":"F32","shape":[2,2],"data_offsets":[0,4]})", 4), size);
  const std::string one = R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  expect_refused(tensor(one, 3), "holds 3 bytes of data, its header says 4");
  expect_refused(tensor(one, 4 + 34), "holds 38 bytes of data, its header says 4");
  expect_refused(tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})", 8), "leaves a hole");
  std::string same = "{";
  for (int i = 0; i < 10; ++i) same += (i ? ",\"t" : "\"t") + std::to_string(i) + "\":" + one;
  expect_refused(with_header(same + "}", 4), "overlaps");
}

TEST_F(Safetensors, RefusesMoreThanAHundredThousandTensors) {
  std::string header = "{";
  for (int i = 0; i <= 100'000; ++i) {
    header += (i ? ",\"" : "\"") + std::to_string(i);
    header += R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  }
  expect_refused(with_header(header + "}"), "more than 100,000 tensors");
}

TEST_F(Safetensors, TensorsMustFitTheModel) {
  float values[6] = {1, 2, 3, 4, 5, 6};
  write_safetensors(path_, {{"w", View(values, {2, 3})}}, {});
  const SafetensorsFile file = SafetensorsFile::open(path_);
  double wide[6];
  EXPECT_REFUSED(Exit::data, "'w' should be f32[3,2]",
                 file.read_all({{"w", View(values, {3, 2})}}));
  EXPECT_REFUSED(Exit::data, "'w' should be f32[6]", file.read_all({{"w", View(values, {6})}}));
  EXPECT_REFUSED(Exit::data, "'w' should be f64[2,3]", file.read_all({{"w", View(wide, {2, 3})}}));
  EXPECT_REFUSED(Exit::data, "'v' is missing",
                 file.read_all({{"w", View(values, {2, 3})}, {"v", View(wide, {1})}}));
  EXPECT_REFUSED(Exit::data, "'w' is unknown", file.read_all({}));
  EXPECT_EQ(values[5], 6);  // nothing was read into it
}

}  // namespace
}  // namespace kla::testing
