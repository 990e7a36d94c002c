#include "train/safetensors.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "core/hash.h"
#include "core/log.h"

namespace kla {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors are little-endian");

constexpr int64_t kMaxHeader = 100'000'000;
constexpr size_t kMaxName = 512;
constexpr size_t kMaxTensors = 100'000;

const std::map<DType, std::string> kTypeNames = {{DType::f64, "F64"},   {DType::f32, "F32"},
                                                 {DType::bf16, "BF16"}, {DType::i64, "I64"},
                                                 {DType::i32, "I32"},   {DType::u8, "U8"}};

std::vector<int64_t> shape_of(const View& view) {
  return {view.shape.begin(), view.shape.begin() + view.rank};
}

// Foreign text in a message: short, and unable to move the cursor.
std::string excerpt(const std::string& text) {
  return "'" + log::printable(text.substr(0, 32)) + "'";
}

// A SAX reader of the header: it sees duplicate keys, which a DOM would hide, and stops at depth 4.
//   {"__metadata__": {string: string}, NAME: {"dtype": string, "shape": [n...], "data_offsets": [b,
//   e]}}
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderReader(std::map<std::string, TensorEntry>& tensors,
               std::map<std::string, std::string>& metadata)
      : tensors_(tensors), metadata_(metadata) {}

  std::string error;

  bool start_object(size_t) override {
    ++depth_;
    if (depth_ == 1) return true;
    if (depth_ != 2) return fail("an object inside a tensor's entry");
    fields_ = 0;
    offsets_.clear();
    entry_ = TensorEntry();
    return true;
  }

  bool key(std::string& text) override {
    if (depth_ == 1) {
      if (text.size() > kMaxName || text.empty()) return fail("a name that is empty or too long");
      if (log::printable(text) != text) return fail("a name with control characters");
      if (!seen_.insert(text).second) return fail("the name '" + text + "' twice");
      if (seen_.size() > kMaxTensors) return fail("more than 100,000 tensors");
      name_ = text;
      return true;
    }
    field_ = text;
    if (in_metadata()) {
      return metadata_.count(text) ? fail("the metadata key " + excerpt(text) + " twice") : true;
    }
    const unsigned bit = text == "dtype"          ? 1u
                         : text == "shape"        ? 2u
                         : text == "data_offsets" ? 4u
                                                  : 0u;
    if (bit == 0) return fail("the unknown field " + excerpt(text));
    if (fields_ & bit) return fail("the field '" + text + "' twice");
    fields_ |= bit;
    return true;
  }

  bool end_object() override {
    if (depth_ == 2 && !in_metadata()) {
      if (fields_ != 7) return fail("an entry without dtype, shape or data_offsets");
      if (offsets_.size() != 2) return fail("data_offsets that are not two numbers");
      entry_.begin = offsets_[0];
      entry_.end = offsets_[1];
      tensors_[name_] = entry_;
    }
    --depth_;
    return true;
  }

  bool start_array(size_t) override {
    if (depth_ != 2 || in_array_ || in_metadata() ||
        (field_ != "shape" && field_ != "data_offsets"))
      return fail("an array out of place");
    in_array_ = true;
    return true;
  }
  bool end_array() override {
    in_array_ = false;
    return true;
  }

  bool number_unsigned(uint64_t value) override {
    if (!in_array_) return fail("a number out of place");
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      return fail("a number beyond 2^63");
    (field_ == "shape" ? entry_.shape : offsets_).push_back(static_cast<int64_t>(value));
    return entry_.shape.size() <= 16 ? true : fail("more than 16 dimensions");
  }

  bool string(std::string& value) override {
    if (depth_ != 2 || in_array_) return fail("a string out of place");
    if (in_metadata()) {
      metadata_[field_] = value;
      return true;
    }
    if (field_ != "dtype") return fail("a string out of place");
    for (const auto& [type, type_name] : kTypeNames) {
      if (value != type_name) continue;
      entry_.dtype = type;
      return true;
    }
    return fail("the unknown type " + excerpt(value));
  }

  bool null() override { return fail("null"); }
  bool boolean(bool) override { return fail("a boolean"); }
  bool number_integer(int64_t) override { return fail("a negative number"); }
  bool number_float(double, const std::string&) override { return fail("a fraction"); }
  bool binary(nlohmann::json::binary_t&) override { return fail("binary data"); }
  bool parse_error(size_t, const std::string&, const nlohmann::json::exception&) override {
    return fail("text that is not JSON");
  }

 private:
  bool in_metadata() const { return name_ == "__metadata__"; }
  bool fail(const std::string& what) {
    if (error.empty()) error = "its header holds " + what;
    return false;
  }

  std::map<std::string, TensorEntry>& tensors_;
  std::map<std::string, std::string>& metadata_;
  std::set<std::string> seen_;
  std::string name_, field_;
  TensorEntry entry_;
  std::vector<int64_t> offsets_;
  unsigned fields_ = 0;
  int depth_ = 0;
  bool in_array_ = false;
};

// Bytes of a tensor, or -1 if the product overflows.
int64_t checked_bytes(const TensorEntry& entry) {
  int64_t bytes = size_of(entry.dtype);
  for (int64_t dim : entry.shape)
    if (__builtin_mul_overflow(bytes, dim, &bytes)) return -1;
  return bytes;
}

}  // namespace

WrittenFile write_safetensors(const std::string& path, const std::vector<NamedView>& tensors,
                              const std::map<std::string, std::string>& metadata) {
  std::vector<const NamedView*> order;  // large types first, then by name: packed and aligned
  for (const NamedView& tensor : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const NamedView* a, const NamedView* b) {
    const int64_t sa = size_of(a->view.dtype), sb = size_of(b->view.dtype);
    return sa != sb ? sa > sb : a->name < b->name;
  });
  nlohmann::ordered_json header;
  header["__metadata__"] = metadata;
  header["__metadata__"]["format"] = "pt";
  int64_t offset = 0;
  for (const NamedView* tensor : order) {
    KLA_CHECK(tensor->view.dense(), tensor->name);
    header[tensor->name] = {{"dtype", kTypeNames.at(tensor->view.dtype)},
                            {"shape", shape_of(tensor->view)},
                            {"data_offsets", {offset, offset + tensor->view.bytes()}}};
    offset += tensor->view.bytes();
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t length = text.size();

  File file = File::create_new(path);
  Xxh3Stream hash;
  auto put = [&](const void* data, size_t bytes) {
    file.write(data, bytes);
    hash.update(data, bytes);
  };
  put(&length, sizeof(length));
  put(text.data(), text.size());
  for (const NamedView* tensor : order)
    put(tensor->view.data, static_cast<size_t>(tensor->view.bytes()));
  file.sync();
  file.close();
  return {static_cast<int64_t>(8 + length) + offset, hash.hex()};
}

SafetensorsFile SafetensorsFile::open(const std::string& path) {
  SafetensorsFile result;
  result.path_ = path;
  result.file_ = File::open_read(path);
  auto refuse = [&](const std::string& why) {
    throw Error(Exit::data, "'" + path + "' is not a valid safetensors file: " + why);
  };
  const int64_t size = result.file_.size();
  uint64_t length = 0;
  if (size < 8 || result.file_.read_at(&length, 8, 0) != 8) refuse("shorter than 8 bytes");
  if (length > static_cast<uint64_t>(kMaxHeader)) refuse("its header claims more than 100 MB");
  if (static_cast<int64_t>(length) > size - 8) refuse("its header is longer than the file");
  std::string header(length, '\0');
  if (result.file_.read_at(header.data(), length, 8) != length) refuse("it ends in its header");
  result.data_start_ = 8 + static_cast<int64_t>(length);
  result.parse(header);
  result.check_layout(size - result.data_start_);
  return result;
}

void SafetensorsFile::parse(const std::string& header) {
  HeaderReader reader(tensors_, metadata_);
  // An embedded NUL or byte order mark is whitespace to the parser; neither is allowed here.
  const bool clean = header.find('\0') == std::string::npos && header.rfind("\xEF\xBB\xBF", 0) != 0;
  const size_t first = header.find_first_not_of(" \t\r\n");
  const bool is_object = first != std::string::npos && header[first] == '{';
  if (!clean || !is_object || !nlohmann::json::sax_parse(header, &reader))
    throw Error(Exit::data,
                "'" + path_ + "' is not a valid safetensors file: " +
                    (reader.error.empty() ? "its header is not a JSON object" : reader.error));
}

// No holes, no overlap, no bytes left over, every size equal to its shape's.
void SafetensorsFile::check_layout(int64_t data_bytes) const {
  std::vector<std::pair<int64_t, const std::string*>> order;
  for (const auto& [name, entry] : tensors_) {
    if (checked_bytes(entry) != entry.end - entry.begin || entry.begin > entry.end)
      throw Error(Exit::data,
                  "'" + path_ + "': the size of tensor '" + name + "' does not equal its shape's");
    order.emplace_back(entry.begin, &name);
  }
  std::sort(order.begin(), order.end(), [&](const auto& a, const auto& b) {
    return a.first != b.first ? a.first < b.first
                              : tensors_.at(*a.second).end < tensors_.at(*b.second).end;
  });
  int64_t expected = 0;
  for (const auto& [begin, name] : order) {
    if (begin != expected)
      throw Error(Exit::data, "'" + path_ + "': tensor '" + *name + "' overlaps or leaves a hole");
    expected = tensors_.at(*name).end;
  }
  if (expected != data_bytes)
    throw Error(Exit::data, "'" + path_ + "' holds " + std::to_string(data_bytes) +
                                " bytes of data, its header says " + std::to_string(expected));
}

void SafetensorsFile::read_all(const std::vector<NamedView>& tensors) const {
  auto refuse = [&](const std::string& why) {
    throw Error(Exit::data, "'" + path_ + "' does not fit this model: " + why,
                "use the config of the run that wrote it");
  };
  for (const NamedView& wanted : tensors) {
    KLA_CHECK(wanted.view.dense(), wanted.name);
    const auto found = tensors_.find(wanted.name);
    if (found == tensors_.end()) refuse("tensor '" + wanted.name + "' is missing");
    if (found->second.dtype != wanted.view.dtype || found->second.shape != shape_of(wanted.view))
      refuse("tensor '" + wanted.name + "' should be " + wanted.view.describe());
  }
  if (tensors.size() != tensors_.size())
    for (const auto& [name, entry] : tensors_)
      if (std::none_of(tensors.begin(), tensors.end(),
                       [&, &key = name](const NamedView& t) { return t.name == key; }))
        refuse("tensor '" + name + "' is unknown");
  for (const NamedView& wanted : tensors) {
    const TensorEntry& entry = tensors_.at(wanted.name);
    const auto bytes = static_cast<size_t>(entry.end - entry.begin);
    if (file_.read_at(wanted.view.data, bytes, data_start_ + entry.begin) != bytes)
      throw Error(Exit::data, "'" + path_ + "' became shorter while it was read");
  }
}

}  // namespace kla
