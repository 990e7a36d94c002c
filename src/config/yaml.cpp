#include "config/yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <sstream>

#include "config/clean_text.h"
#include "core/error.h"
#include "core/file.h"

namespace kla {
namespace {

constexpr size_t kMaxDepth = 32;
constexpr size_t kMaxNodes = 20000;

struct Refusal {
  int line;
  size_t byte;
  size_t bytes;
  std::string message, note;
};

// Marks count from 0, from where the parser's text begins; those of errors may be -1.
size_t byte_of(const SourceText& source, const YAML::Mark& mark) {
  const auto column = static_cast<size_t>(std::max(mark.column, 0));
  return mark.line > 0 ? column : column + source.value_at();
}

// Builds the tree from the parser's events and refuses, at the place, what a config may not hold.
// Events rather than YAML::Node: an alias or a thousand levels are refused before they exist.
class TreeBuilder final : public YAML::EventHandler {
 public:
  explicit TreeBuilder(const SourceText& source) : source_(source) {}

  YamlNode take() { return std::move(root_); }
  const YamlNode* innermost_open() const { return stack_.empty() ? nullptr : &stack_.back().node; }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (started_)
      refuse(mark, "a second document, or text that is not part of the first",
             "a config is one YAML document; remove '---' and what follows, or check the "
             "indentation and brackets before this place");
    started_ = true;
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    add(node(mark, YamlNode::Kind::null, "", anchor));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override { refuse_anchor(mark); }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    YamlNode scalar = node(mark, YamlNode::Kind::scalar, tag, anchor);
    scalar.text = value;
    scalar.quoted = tag == "!";
    scalar.bytes = std::max<size_t>(value.size() + (scalar.quoted ? 2 : 0), 1);
    add(std::move(scalar));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, node(mark, YamlNode::Kind::list, tag, anchor));
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, node(mark, YamlNode::Kind::map, tag, anchor));
  }
  void OnMapEnd() override { close(); }

 private:
  struct Frame {
    YamlNode node;
    std::map<std::string, int> lines;  // of the keys so far
  };

  [[noreturn]] void refuse(const YAML::Mark& mark, const std::string& message,
                           const std::string& note) const {
    throw Refusal{mark.line + 1, byte_of(source_, mark), 1, message, note};
  }
  [[noreturn]] void refuse_anchor(const YAML::Mark& mark) const {
    refuse(mark, "anchors (&) and aliases (*) are not allowed in a config",
           "put what is shared into a file of its own and list it under 'defaults:'");
  }

  YamlNode node(const YAML::Mark& mark, YamlNode::Kind kind, const std::string& tag,
                YAML::anchor_t anchor) {
    if (anchor != 0) refuse_anchor(mark);
    const std::string_view line = source_.line(mark.line + 1);
    const size_t byte = byte_of(source_, mark);
    const bool written = byte < line.size() && line[byte] == '!';
    if (written || !(tag.empty() || tag == "?" || tag == "!"))
      refuse(mark, "tags (!) are not allowed in a config", "write the value without it");
    if (++nodes_ > kMaxNodes)
      refuse(mark, "more than " + std::to_string(kMaxNodes) + " values in one file", "");
    YamlNode made;
    made.kind = kind;
    made.line = mark.line + 1;
    made.byte = byte;
    return made;
  }

  void open(const YAML::Mark& mark, YamlNode node) {
    if (stack_.size() == kMaxDepth)
      refuse(mark, "nested deeper than " + std::to_string(kMaxDepth) + " levels", "");
    stack_.push_back({std::move(node), {}});
  }
  void close() {
    YamlNode done = std::move(stack_.back().node);
    stack_.pop_back();
    add(std::move(done));
  }

  void add(YamlNode node) {
    if (stack_.empty()) {
      root_ = std::move(node);
      return;
    }
    Frame& frame = stack_.back();
    YamlNode& parent = frame.node;
    if (parent.kind == YamlNode::Kind::map && parent.keys.size() == parent.values.size()) {
      check_key(frame, node);
      parent.keys.push_back(std::move(node));
    } else {
      parent.values.push_back(std::move(node));
    }
  }

  static void check_key(Frame& frame, const YamlNode& key) {
    const auto refuse_key = [&](const std::string& message, const std::string& note) {
      throw Refusal{key.line, key.byte, key.bytes, message, note};
    };
    if (key.kind != YamlNode::Kind::scalar) refuse_key("a key must be a word", "");
    if (key.text == "<<")
      refuse_key("merge keys (<<) are not allowed in a config",
                 "put what is shared into a file of its own and list it under 'defaults:'");
    const auto [first, fresh] = frame.lines.emplace(key.text, key.line);
    if (!fresh)
      refuse_key("duplicate key " + shown(key.text),
                 "it is first given on line " + std::to_string(first->second));
  }

  const SourceText& source_;
  std::vector<Frame> stack_;
  YamlNode root_;
  size_t nodes_ = 0;
  bool started_ = false;
};

void refuse_unclean(const SourceText& source) {
  const std::string& text = source.text();
  if (static_cast<int64_t>(text.size()) > kMaxConfigBytes)
    throw Refusal{1, 0, 1, "larger than 1 MiB",
                  "a config is a page of text: is this the right file?"};
  size_t at = find_unclean(text);
  if (source.kind() == Origin::Kind::command_line) at = std::min(at, text.find('\n'));
  if (at == std::string::npos) return;
  const auto line =
      1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n');
  const size_t start = at == 0 ? std::string::npos : text.rfind('\n', at - 1);
  throw Refusal{static_cast<int>(line), at - (start == std::string::npos ? 0 : start + 1), 1,
                "a control character or invalid UTF-8", "save the file as UTF-8 text"};
}

// yaml-cpp's own message, at the place that needs a change, with what usually stands behind it.
Refusal translate(const YAML::Exception& e, const SourceText& source, const YamlNode* open) {
  const int number = std::max(e.mark.line, 0) + 1;
  const std::string message = "not valid YAML: " + e.msg;
  const std::string_view line = source.line(number);
  const size_t tab = line.substr(0, line.find_first_not_of(" \t")).find('\t');
  if (tab != std::string_view::npos)
    return {number, tab, 1, message, "indent with spaces, not tabs"};
  if (open && e.msg.find("flow") != std::string::npos)
    return {open->line, open->byte, 1, message,
            "this bracket is not closed, or text in it needs quotes"};
  const bool colon = e.msg.find("map value") != std::string::npos;
  return {number, byte_of(source, e.mark), 1, message,
          colon ? "text that contains ': ' needs quotes; otherwise check the indentation"
                : "check the indentation, quotes and brackets here and on the line before"};
}

YamlNode parse(const SourceText& source) {
  refuse_unclean(source);
  std::istringstream stream(source.text().substr(source.value_at()));
  TreeBuilder tree(source);
  try {
    YAML::Parser parser(stream);
    if (!parser.HandleNextDocument(tree)) return {};
    // A second call on the same builder refuses a second document. Asking for more than one more
    // is not safe: on some malformed text the parser never comes to an end.
    parser.HandleNextDocument(tree);
    return tree.take();
  } catch (const YAML::Exception& e) {
    throw translate(e, source, tree.innermost_open());
  }
}

}  // namespace

std::string read_config_text(const std::string& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) throw Error(Exit::usage, "there is no such file");
  if (!std::filesystem::is_regular_file(status))
    throw Error(Exit::usage, "it is not a regular file");
  std::string text = read_file(path, kMaxConfigBytes);
  if (text.rfind("\xEF\xBB\xBF", 0) == 0) text.erase(0, 3);  // byte order mark
  return text;
}

std::optional<YamlNode> parse_yaml(const SourceText& source, Diagnostics& diagnostics) {
  try {
    return parse(source);
  } catch (const Refusal& refusal) {
    const Origin at = source.at(refusal.line, refusal.byte, refusal.bytes);
    diagnostics.error(at, refusal.message, refusal.note);
    return std::nullopt;
  }
}

}  // namespace kla
