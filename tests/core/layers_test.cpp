// The layer rule of src/README.md, held by reading every #include below src/ and kernels/, and the
// rule that costly library headers stay out of our headers.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "core/file.h"

namespace kla {
namespace {

struct Include {
  std::string file;  // "src/model/block.cpp"
  std::string name;  // "core/view.h"
  bool system;       // <...>
};

// What a layer may include beside itself: folders, or single headers.
const std::map<std::string, std::set<std::string>> kAllowed = {
    {"core", {}},
    {"config", {"core"}},
    {"kernels", {"core"}},
    {"model", {"core", "kernels", "config/config.h"}},
    {"data", {"core", "config"}},
    {"eval", {"core", "kernels", "config/config.h", "model", "data"}},
    {"distributed", {"core", "config/config.h"}},
    {"train", {"core", "kernels", "config/config.h", "model", "data", "eval", "distributed"}},
    {"report", {"core"}},
    {"commands",
     {"core", "kernels", "config", "model", "data", "eval", "distributed", "train", "report"}},
    {"main", {"core", "config", "commands"}},
};

// Libraries whose headers take seconds to compile, with the number of files that may include them.
const std::map<std::string, size_t> kHeavy = {
    {"spdlog/", 2},       {"CLI/", 2}, {"yaml-cpp/", 2}, {"nlohmann/", 8},
    {"sentencepiece", 2}, {"dnnl", 2}, {"mpi.h", 1},     {"nccl.h", 1}};

std::string layer_of(const std::string& file) {
  const std::string path = file.rfind("src/", 0) == 0 ? file.substr(4) : file;
  return path == "main.cpp" ? "main" : path.substr(0, path.find('/'));
}

std::vector<Include> includes_in(const std::string& file, const std::string& text) {
  std::vector<Include> found;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const std::string directive = "#include ";
    if (line.rfind(directive, 0) != 0 || line.size() < directive.size() + 2) continue;
    const bool system = line[directive.size()] == '<';
    const size_t begin = directive.size() + 1;
    found.push_back(
        {file, line.substr(begin, line.find(system ? '>' : '"', begin) - begin), system});
  }
  return found;
}

std::vector<Include> all_includes() {
  std::vector<Include> all;
  const std::filesystem::path root = KLA_SOURCE_DIR;
  for (const char* folder : {"src", "kernels"})
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root / folder)) {
      const std::string extension = entry.path().extension().string();
      if (extension != ".h" && extension != ".cpp" && extension != ".cu" && extension != ".cuh")
        continue;
      const std::string file = std::filesystem::relative(entry.path(), root).generic_string();
      const std::vector<Include> here = includes_in(file, read_file(entry.path().string()));
      all.insert(all.end(), here.begin(), here.end());
    }
  return all;
}

// Written by CMake (version.h), a library's own quoted style, or what stands in for CUDA's headers
// where the kernels run on the CPU.
bool outside_the_tree(const Include& include) {
  return include.system || include.name == "version.h" || include.name.starts_with("hwy/") ||
         (include.file.starts_with("kernels/cuda/") && include.name.starts_with("tests/simt/"));
}

std::vector<std::string> layer_violations(const std::vector<Include>& includes) {
  std::vector<std::string> violations;
  for (const Include& include : includes) {
    if (outside_the_tree(include)) continue;
    const std::string from = layer_of(include.file), to = layer_of(include.name);
    const auto allowed = kAllowed.find(from);
    const bool fine = allowed != kAllowed.end() && (from == to || allowed->second.count(to) ||
                                                    allowed->second.count(include.name));
    if (!fine) violations.push_back(include.file + " includes " + include.name);
  }
  return violations;
}

std::vector<std::string> heavy_violations(const std::vector<Include>& includes) {
  std::vector<std::string> violations;
  for (const auto& [library, limit] : kHeavy) {
    std::set<std::string> users;
    for (const Include& include : includes) {
      if (include.name.rfind(library, 0) != 0) continue;
      users.insert(include.file);
      if (include.file.ends_with(".h"))
        violations.push_back(include.file + " is a header and includes " + include.name);
    }
    if (users.size() > limit)
      violations.push_back(library + " is included by " + std::to_string(users.size()) + " files");
  }
  return violations;
}

TEST(Layers, ArrowsPointOneWay) {
  const std::vector<Include> includes = all_includes();
  ASSERT_GT(includes.size(), 300u);  // the tree was found and read
  EXPECT_EQ(layer_violations(includes), std::vector<std::string>());
}

TEST(Layers, CostlyHeadersStayInFewSourceFiles) {
  const std::vector<Include> includes = all_includes();
  const auto uses = [&](const std::string& library) {
    return std::any_of(includes.begin(), includes.end(),
                       [&](const Include& i) { return i.name.rfind(library, 0) == 0; });
  };
  for (const auto& [library, unused] : kHeavy) EXPECT_TRUE(uses(library)) << library;
  EXPECT_EQ(heavy_violations(includes), std::vector<std::string>());
}

TEST(Layers, ViolationsAreFound) {
  const auto made_up = [](const char* file, const char* line) { return includes_in(file, line); };
  EXPECT_EQ(layer_violations(made_up("src/core/view.h", "#include \"model/block.h\"")),
            std::vector<std::string>{"src/core/view.h includes model/block.h"});
  for (const auto& [file, line] : std::map<std::string, std::string>{
           {"src/model/block.cpp", "#include \"config/load.h\"  // why"},
           {"src/report/html.cpp", "#include \"train/metrics.h\""},
           {"src/data/loader.cpp", "#include \"kernels/ops.h\""},
           {"src/eval/scorer.h", "#include \"train/trainer.h\""},
           {"kernels/cpu/norm.cpp", "#include \"model/block.h\""},
           {"src/unknown/file.cpp", "#include \"core/view.h\""}})
    EXPECT_EQ(layer_violations(includes_in(file, line)).size(), 1u) << file;
  EXPECT_EQ(layer_violations(made_up("src/model/block.cpp", "#include \"config/config.h\"")).size(),
            0u);
  EXPECT_EQ(heavy_violations(made_up("src/core/log.h", "#include <spdlog/logger.h>")).size(), 1u);
  std::vector<Include> three;
  for (const char* file : {"a.cpp", "b.cpp", "c.cpp"}) three.push_back({file, "CLI/CLI.hpp", true});
  EXPECT_EQ(heavy_violations(three).size(), 1u);
}

}  // namespace
}  // namespace kla
