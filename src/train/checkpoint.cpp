#include "train/checkpoint.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/file.h"
#include "core/hash.h"
#include "core/log.h"
#include "core/memory.h"

namespace kla {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kFormat = 1;
constexpr const char* kModelFile = "model.safetensors";
constexpr const char* kOptimizerFile = "optim.rank0000.safetensors";
constexpr const char* kStateFile = "state.json";
constexpr const char* kManifestFile = "manifest.json";
constexpr const char* kLatestFile = "latest";
constexpr int64_t kSmallFile = 1 << 20;

std::string step_name(int64_t step) {
  char name[32];
  std::snprintf(name, sizeof(name), "step-%08lld", static_cast<long long>(step));
  return name;
}

// Names in a directory; none if it does not exist. A directory that cannot be read is not an empty
// one.
std::vector<std::string> names_in(const std::string& directory) {
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator entry(directory, error);
  if (error == std::errc::no_such_file_or_directory) return names;
  for (; !error && entry != fs::directory_iterator(); entry.increment(error))
    names.push_back(entry->path().filename());
  if (error)
    throw Error(Exit::io, "cannot read '" + directory + "': " + error.message(),
                "look at its permissions and whether its disk is mounted");
  std::sort(names.begin(), names.end());
  return names;
}

WrittenFile hash_file(const std::string& path) {
  const File file = File::open_read(path);
  Xxh3Stream hash;
  std::vector<char> block(1 << 20);
  int64_t bytes = 0;
  while (const size_t n = file.read_at(block.data(), block.size(), bytes)) {
    hash.update(block.data(), n);
    bytes += static_cast<int64_t>(n);
  }
  return {bytes, hash.hex()};
}

WrittenFile write_text(const std::string& path, const std::string& text) {
  File file = File::create_new(path);
  file.write(text);
  file.sync();
  file.close();
  return {static_cast<int64_t>(text.size()), xxh3_128_hex(text.data(), text.size())};
}

// The manifest vouches for every other file, and by this last key for itself: any changed byte,
// even of white space, gives another text.
std::string manifest_text(json manifest) {
  const std::string body = manifest.dump();
  manifest["xxh3_128"] = xxh3_128_hex(body.data(), body.size());
  return manifest.dump(1) + "\n";
}

json read_manifest(const std::string& path) {
  const std::string text = read_file(path, kSmallFile);
  const auto flat = [](int depth, json::parse_event_t, json&) { return depth <= 3; };
  const json manifest = json::parse(text, flat, false);
  json body = manifest.is_object() ? manifest : json::object();
  body.erase("xxh3_128");
  if (manifest_text(body) != text) throw Error(Exit::data, "'" + path + "' is damaged");
  return manifest;
}

std::string hex(uint64_t value) {
  char text[20];
  std::snprintf(text, sizeof(text), "0x%016llx", static_cast<unsigned long long>(value));
  return text;
}

uint64_t bits_of(double value) {
  uint64_t bits;
  static_assert(sizeof(bits) == sizeof(value));
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

double double_of(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Bytes a save needs at most, with a fifth to spare.
int64_t needed_bytes(const std::vector<NamedView>& model, const std::vector<NamedView>& optimizer) {
  int64_t bytes = 1 << 16;
  for (const auto* tensors : {&model, &optimizer})
    for (const NamedView& tensor : *tensors) bytes += tensor.view.bytes() + 256;
  return bytes + bytes / 5;
}

void require_room(const std::string& directory, int64_t needed) {
  const int64_t available = free_bytes(directory);
  if (available >= needed) return;
  throw Error(Exit::io,
              "no room for a checkpoint in '" + directory + "': it needs " + format_bytes(needed) +
                  ", " + format_bytes(available) + " are free",
              "free some space and start again, the last checkpoint is intact");
}

bool all_finite(const View& view) {
  const auto finite = [n = view.size()](const auto* x) {
    return std::all_of(x, x + n, [](auto value) { return std::isfinite(value); });
  };
  if (view.dtype == DType::f32) return finite(view.as<float>());
  if (view.dtype == DType::f64) return finite(view.as<double>());
  return true;
}

// Weights with NaN or infinity would train on silently; better to fall back.
void require_finite(const std::vector<NamedView>& tensors, const std::string& path) {
  for (const NamedView& tensor : tensors) {
    if (!all_finite(tensor.view))
      throw Error(Exit::data, "'" + path + "': tensor '" + tensor.name + "' is not finite",
                  "continue from an earlier checkpoint");
  }
}

// Every integer and double field of TrainState, by name: writing and reading use the same list.
template <class State, class Integer, class Double>
void for_each_number(State& s, Integer&& integer, Double&& real) {
  integer("step", s.step);
  integer("updates", s.updates);
  integer("tokens", s.tokens);
  integer("previous_tokens", s.previous_tokens);
  integer("next_sample", s.next_sample);
  integer("evaluated_step", s.evaluated_step);
  integer("guard_consecutive", s.guard.consecutive);
  integer("guard_total", s.guard.total);
  integer("loss_tokens", s.loss_tokens);
  integer("run_seed", s.run_seed);
  integer("shuffle_seed", s.shuffle_seed);
  real("loss_sum", s.loss_sum);
  real("train_seconds", s.train_seconds);
}

template <class State, class Text>
void for_each_text(State& s, Text&& text) {
  text("config_hash", s.config_hash);
  text("data_identity", s.data_identity);
  text("tokenizer_sha256", s.tokenizer_sha256);
}

}  // namespace

std::string to_json(const TrainState& state) {
  nlohmann::ordered_json out;
  for_each_number(
      state,
      [&](const char* name, const auto& value) { out[name] = hex(static_cast<uint64_t>(value)); },
      [&](const char* name, const double& value) { out[name] = hex(bits_of(value)); });
  for_each_text(state, [&](const char* name, const std::string& value) { out[name] = value; });
  return out.dump(1, ' ', true) + "\n";
}

TrainState train_state_from_json(const std::string& text, const std::string& name) {
  TrainState state;
  try {
    const json in = json::parse(text);
    auto number = [&](const char* key) {
      const auto value = in.at(key).get<std::string>();
      size_t used = 0;
      const uint64_t bits = std::stoull(value, &used, 16);
      if (used != value.size()) throw std::invalid_argument(key);
      return bits;
    };
    for_each_number(
        state,
        [&](const char* key, auto& value) {
          value = static_cast<std::remove_reference_t<decltype(value)>>(number(key));
        },
        [&](const char* key, double& value) { value = double_of(number(key)); });
    for_each_text(state, [&](const char* key, std::string& value) { value = in.at(key); });
  } catch (const std::exception& e) {
    throw Error(Exit::data, "'" + name + "' is not a training state: " + e.what());
  }
  return state;
}

std::vector<NamedView> named_views(const ParameterTable& table, View flat,
                                   const std::string& prefix) {
  std::vector<NamedView> views;
  for (size_t i = 0; i < table.specs().size(); ++i)
    views.push_back({prefix + table.specs()[i].name, table.view(flat, static_cast<int>(i))});
  return views;
}

CheckpointStore::CheckpointStore(const std::string& directory) : directory_(directory) {}

void CheckpointStore::remove_leftovers() const {
  std::error_code ignored;
  for (const std::string& name : names_in(directory_))
    if (name.rfind(".tmp-", 0) == 0 || name.rfind(".trash-", 0) == 0)
      fs::remove_all(fs::path(directory_) / name, ignored);
}

std::vector<Checkpoint> CheckpointStore::list() const {
  std::vector<Checkpoint> found;
  for (const std::string& name : names_in(directory_)) {
    long long step = 0;
    if (std::sscanf(name.c_str(), "step-%18lld", &step) != 1 || name != step_name(step)) continue;
    found.push_back({directory_ + "/" + name, step});
  }
  std::sort(found.begin(), found.end(),
            [](const Checkpoint& a, const Checkpoint& b) { return a.step > b.step; });
  return found;
}

std::optional<Checkpoint> CheckpointStore::newest_valid() const {
  for (const Checkpoint& checkpoint : list()) {
    try {
      verify(checkpoint);
      return checkpoint;
    } catch (const Error& e) {
      log::warning(std::string(e.what()) + "; trying the checkpoint before it");
    }
  }
  return std::nullopt;
}

std::optional<Checkpoint> CheckpointStore::find(const std::string& name) const {
  for (const Checkpoint& checkpoint : list()) {
    if (fs::path(checkpoint.path).filename() != name) continue;
    verify(checkpoint);
    return checkpoint;
  }
  return std::nullopt;
}

bool CheckpointStore::ever_held_one() const {
  return file_exists(directory_ + "/" + kLatestFile) || !list().empty();
}

std::string CheckpointStore::save(const std::vector<NamedView>& model,
                                  const std::vector<NamedView>& optimizer, const TrainState& state,
                                  const CheckpointConfig& keep) const {
  if (!file_exists(directory_)) {
    make_directories(directory_);
    sync_directory(fs::path(directory_).parent_path());
  }
  require_room(directory_, needed_bytes(model, optimizer));
  const std::string name = step_name(state.step), final_path = directory_ + "/" + name;
  const std::string temporary = directory_ + "/.tmp-" + name;
  std::error_code ignored;
  fs::remove_all(temporary, ignored);
  try {
    make_directories(temporary);
    write_files(temporary, model, optimizer, state);
    sync_directory(temporary);
    // A damaged checkpoint of the same step makes room; an intact one is never saved again.
    if (file_exists(final_path)) remove({final_path, state.step});
    if (::rename(temporary.c_str(), final_path.c_str()) != 0)
      throw_errno("cannot rename '" + temporary + "' to '" + final_path + "'");
    sync_directory(directory_);  // the commit point
  } catch (...) {
    fs::remove_all(temporary, ignored);
    throw;
  }
  try {
    write_file_atomic(directory_ + "/" + kLatestFile, name + "\n");
    retain(keep, state.step);
  } catch (const Error& e) {  // the checkpoint itself is safe
    log::warning(std::string(e.what()) + "; '" + name + "' is saved, older ones were not tidied");
  }
  return final_path;
}

void CheckpointStore::write_files(const std::string& folder, const std::vector<NamedView>& model,
                                  const std::vector<NamedView>& optimizer,
                                  const TrainState& state) {
  const std::map<std::string, std::string> metadata = {{"step", std::to_string(state.step)}};
  json files;
  auto record = [&](const char* file, const WrittenFile& written) {
    files[file] = {{"bytes", written.bytes}, {"xxh3_128", written.xxh3_128}};
  };
  record(kModelFile, write_safetensors(folder + "/" + kModelFile, model, metadata));
  record(kOptimizerFile, write_safetensors(folder + "/" + kOptimizerFile, optimizer, metadata));
  record(kStateFile, write_text(folder + "/" + kStateFile, to_json(state)));
  write_text(folder + "/" + kManifestFile, manifest_text({{"format", kFormat},
                                                          {"step", state.step},
                                                          {"tokens", state.tokens},
                                                          {"world_size", 1},
                                                          {"config_hash", state.config_hash},
                                                          {"files", files}}));
}

// Keeps the newest keep_last and, for good, the first one of every keep_every_tokens. Anything
// newer than the one just saved was found damaged when the run continued before it.
void CheckpointStore::retain(const CheckpointConfig& keep, int64_t saved_step) const {
  std::vector<Checkpoint> all = list();
  for (; !all.empty() && all.front().step > saved_step; all.erase(all.begin())) remove(all.front());
  auto tokens_of = [](const Checkpoint& c) {
    try {
      return read_manifest(c.path + "/" + kManifestFile).value("tokens", int64_t{0});
    } catch (const Error&) {
      return int64_t{0};  // damaged: not worth keeping
    }
  };
  auto for_good = [&](size_t i) {
    if (keep.keep_every_tokens <= 0) return false;
    const int64_t before = i + 1 < all.size() ? tokens_of(all[i + 1]) : 0;
    return tokens_of(all[i]) / keep.keep_every_tokens > before / keep.keep_every_tokens;
  };
  for (auto i = static_cast<size_t>(std::max<int64_t>(2, keep.keep_last)); i < all.size(); ++i)
    if (!for_good(i)) remove(all[i]);
}

void CheckpointStore::remove(const Checkpoint& checkpoint) const {
  const fs::path path = checkpoint.path;
  const fs::path trash = path.parent_path() / (".trash-" + path.filename().string());
  std::error_code ignored;
  fs::remove_all(trash, ignored);
  if (::rename(path.c_str(), trash.c_str()) != 0)
    throw_errno("cannot rename '" + path.string() + "'");
  sync_directory(directory_);
  fs::remove_all(trash, ignored);
}

void CheckpointStore::verify(const Checkpoint& checkpoint) {
  auto refuse = [&](const std::string& why) {
    throw Error(Exit::data, "checkpoint '" + checkpoint.path + "': " + log::printable(why));
  };
  auto require_file = [&](const std::string& name) {
    std::error_code error;
    if (!fs::is_regular_file(checkpoint.path + "/" + name, error)) refuse(name + " is missing");
  };
  require_file(kManifestFile);
  const json manifest = read_manifest(checkpoint.path + "/" + kManifestFile);
  std::map<std::string, WrittenFile> files;
  try {
    if (manifest.at("format").get<int>() != kFormat) refuse("manifest.json has an unknown format");
    if (manifest.at("step").get<int64_t>() != checkpoint.step)
      refuse("manifest.json is of another step");
    for (const auto& [name, entry] : manifest.at("files").items())
      files[name] = {entry.at("bytes").get<int64_t>(), entry.at("xxh3_128").get<std::string>()};
  } catch (const json::exception&) {
    refuse("manifest.json lacks an entry");
  }
  for (const char* name : {kModelFile, kOptimizerFile, kStateFile})
    if (!files.count(name)) refuse(std::string("manifest.json does not list ") + name);
  for (const std::string& name : names_in(checkpoint.path))
    if (name != kManifestFile && !files.count(name)) refuse("'" + name + "' does not belong there");
  for (const auto& [name, expected] : files) {
    if (name.find('/') != std::string::npos) refuse("manifest.json names a file elsewhere");
    require_file(name);
    const WrittenFile found = hash_file(checkpoint.path + "/" + name);
    if (found.bytes != expected.bytes) refuse(name + " has the wrong size");
    if (found.xxh3_128 != expected.xxh3_128) refuse(name + " is damaged (its hash differs)");
  }
  const TrainState state = load_state(checkpoint);
  if (state.step != checkpoint.step) refuse("state.json is of another step");
  if (state.config_hash != manifest.value("config_hash", ""))
    refuse("state.json is of another run");
}

TrainState CheckpointStore::load_state(const Checkpoint& checkpoint) {
  const std::string path = checkpoint.path + "/" + kStateFile;
  return train_state_from_json(read_file(path, kSmallFile), path);
}

void CheckpointStore::load_model(const Checkpoint& checkpoint,
                                 const std::vector<NamedView>& model) {
  const std::string path = checkpoint.path + "/" + kModelFile;
  SafetensorsFile::open(path).read_all(model);
  require_finite(model, path);
}

void CheckpointStore::load_optimizer(const Checkpoint& checkpoint,
                                     const std::vector<NamedView>& optimizer) {
  const std::string path = checkpoint.path + "/" + kOptimizerFile;
  SafetensorsFile::open(path).read_all(optimizer);
  require_finite(optimizer, path);
}

}  // namespace kla
