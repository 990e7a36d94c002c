// Text into HTML that is XML as well: escaped text, and elements that always close.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace kla::report {

// & < > " ' as entities; control characters and bytes that are not UTF-8 as U+FFFD.
std::string escape(const std::string& text);

using Attributes = std::vector<std::pair<const char*, std::string>>;

// <name attribute="...">content</name>: `content` is markup already, attribute values are escaped.
std::string element(const char* name, const std::string& content, const Attributes& = {});
std::string empty_element(const char* name, const Attributes& = {});
// <name ...>text</name> with `text` escaped.
std::string text_element(const char* name, const std::string& text, const Attributes& = {});

}  // namespace kla::report
