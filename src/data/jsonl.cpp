#include "data/jsonl.h"

#include <nlohmann/json.hpp>

namespace kla {
namespace {

constexpr int kMaxDepth = 64;

// Receives the parser's events; returning false stops it.
class FieldFinder {
 public:
  using Json = nlohmann::json;
  FieldFinder(const std::string& field, std::string& text) : field_(field), text_(text) {}
  bool found() const { return found_; }
  bool is_object() const { return is_object_; }

  bool null() { return true; }
  bool boolean(bool) { return true; }
  bool number_integer(Json::number_integer_t) { return true; }
  bool number_unsigned(Json::number_unsigned_t) { return true; }
  bool number_float(Json::number_float_t, const Json::string_t&) { return true; }
  bool binary(Json::binary_t&) { return true; }
  bool string(Json::string_t& value) {
    if (depth_ == 1 && wanted_) {
      text_.swap(value);
      found_ = true;
    }
    return true;
  }
  bool key(Json::string_t& name) {
    if (depth_ == 1) wanted_ = name == field_;
    return true;
  }
  bool start_object(size_t) {
    is_object_ = is_object_ || depth_ == 0;
    return ++depth_ <= kMaxDepth;
  }
  bool start_array(size_t) { return ++depth_ <= kMaxDepth; }
  bool end_object() { return --depth_ >= 0; }
  bool end_array() { return --depth_ >= 0; }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception&) { return false; }

 private:
  const std::string& field_;
  std::string& text_;
  int depth_ = 0;
  bool wanted_ = false, found_ = false, is_object_ = false;
};

}  // namespace

JsonLine read_json_field(std::string_view line, const std::string& field, std::string& text) {
  FieldFinder finder(field, text);
  const bool parsed = nlohmann::json::sax_parse(line.begin(), line.end(), &finder);
  if (!parsed || !finder.is_object()) return JsonLine::malformed;
  return finder.found() ? JsonLine::ok : JsonLine::missing_field;
}

}  // namespace kla
