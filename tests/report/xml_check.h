// A strict little reader of the XML that the report writes: every element closes in order, every
// attribute is quoted, text holds no bare < or &. Knows <!DOCTYPE html>, no comments, no CDATA.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace kla::report {

struct XmlFacts {
  std::string error;                    // empty: well-formed
  std::map<std::string, int> elements;  // how many of each
  std::vector<std::string> attribute_values;
};

class XmlReader {
 public:
  explicit XmlReader(const std::string& text) : text_(text) {}

  XmlFacts read() {
    const std::string doctype = "<!DOCTYPE html>";
    if (text_.rfind(doctype, 0) == 0) at_ = doctype.size();
    while (facts_.error.empty() && at_ < text_.size()) {
      if (text_[at_] == '<')
        read_tag();
      else
        check_character();
    }
    if (facts_.error.empty() && !open_.empty()) fail("<" + open_.back() + "> is not closed");
    return facts_;
  }

 private:
  void fail(const std::string& what) {
    facts_.error = what + " at byte " + std::to_string(at_) + ": " + text_.substr(at_, 60);
  }

  bool take(const std::string& word) {
    if (text_.compare(at_, word.size(), word) != 0) return false;
    at_ += word.size();
    return true;
  }

  std::string name() {
    const size_t end = text_.find_first_not_of(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-", at_);
    const std::string word = text_.substr(at_, end - at_);
    at_ += word.size();
    if (word.empty()) fail("a name is missing");
    return word;
  }

  void check_character() {
    if (text_[at_] == '&') {
      for (const char* entity : {"&amp;", "&lt;", "&gt;", "&quot;", "&#39;"})
        if (take(entity)) return;
      return fail("bare &");
    }
    if (text_[at_] == '<') return fail("bare <");
    const auto byte = static_cast<unsigned char>(text_[at_]);
    if (byte < 0x20 && byte != '\n' && byte != '\t') return fail("control character");
    ++at_;
  }

  void read_tag() {
    if (take("</")) {
      const std::string closing = name();
      if (open_.empty() || open_.back() != closing)
        return fail("</" + closing + "> closes nothing");
      open_.pop_back();
      if (!take(">")) fail("> is missing");
      return;
    }
    take("<");
    const std::string opening = name();
    ++facts_.elements[opening];
    while (facts_.error.empty() && take(" ")) read_attribute();
    if (take("/>")) return;
    if (!take(">")) return fail("> is missing");
    open_.push_back(opening);
  }

  void read_attribute() {
    name();
    if (!take("=\"")) return fail("=\" is missing");
    const size_t begin = at_;
    while (facts_.error.empty() && at_ < text_.size() && text_[at_] != '"') check_character();
    facts_.attribute_values.push_back(text_.substr(begin, at_ - begin));
    take("\"");
  }

  const std::string& text_;
  size_t at_ = 0;
  std::vector<std::string> open_;
  XmlFacts facts_;
};

}  // namespace kla::report
