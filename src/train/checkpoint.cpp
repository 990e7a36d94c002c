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
constexpr const char* kMarkerFile = "started";  // this directory has held a checkpoint

std::string step_name(int64_t step) {
  char name[32];
  std::snprintf(name, sizeof(name), "step-%08lld", static_cast<long long>(step));
  return name;
}

std::string hash_file(const std::string& path, int64_t& bytes) {
  const File file = File::open_read(path);
  Xxh3Stream hash;
  std::vector<char> block(1 << 20);
  bytes = 0;
  while (const size_t n = file.read_at(block.data(), block.size(), bytes)) {
    hash.update(block.data(), n);
    bytes += static_cast<int64_t>(n);
  }
  return hash.hex();
}

void write_text(const std::string& path, const std::string& text, json& files,
                const std::string& name) {
  File file = File::create_new(path);
  file.write(text);
  file.sync();
  file.close();
  if (!name.empty())
    files[name] = {{"bytes", text.size()}, {"xxh3_128", xxh3_128_hex(text.data(), text.size())}};
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

int64_t total_bytes(const std::vector<NamedView>& tensors) {
  int64_t bytes = 0;
  for (const NamedView& tensor : tensors) bytes += tensor.view.bytes() + 256;
  return bytes;
}

// Weights with NaN or infinity would train on silently; better to fall back.
void require_finite(const std::vector<NamedView>& tensors, const std::string& path) {
  for (const NamedView& tensor : tensors) {
    bool finite = true;
    const int64_t n = tensor.view.size();
    if (tensor.view.dtype == DType::f32)
      finite = std::all_of(tensor.view.as<float>(), tensor.view.as<float>() + n,
                           [](float x) { return std::isfinite(x); });
    if (tensor.view.dtype == DType::f64)
      finite = std::all_of(tensor.view.as<double>(), tensor.view.as<double>() + n,
                           [](double x) { return std::isfinite(x); });
    if (!finite)
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
  return out.dump(1) + "\n";
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
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory_, error)) {
    const std::string name = entry.path().filename();
    if (name.rfind(".tmp-", 0) == 0 || name.rfind(".trash-", 0) == 0)
      fs::remove_all(entry.path(), error);
  }
}

std::vector<Checkpoint> CheckpointStore::list() const {
  std::vector<Checkpoint> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory_, error)) {
    const std::string name = entry.path().filename();
    if (name.rfind("step-", 0) != 0 || name.size() < 13) continue;
    if (name.find_first_not_of("0123456789", 5) != std::string::npos) continue;
    found.push_back({entry.path(), std::stoll(name.substr(5))});
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
  return file_exists(directory_ + "/" + kMarkerFile) || !list().empty();
}

void CheckpointStore::save(const std::vector<NamedView>& model,
                           const std::vector<NamedView>& optimizer, const TrainState& state,
                           const CheckpointConfig& keep) const {
  make_directories(directory_);
  const int64_t needed = (total_bytes(model) + total_bytes(optimizer)) / 10 * 12 / 10 * 10;
  if (const int64_t available = free_bytes(directory_); available < needed)
    throw Error(Exit::io,
                "no room for a checkpoint in '" + directory_ + "': it needs " +
                    format_bytes(needed) + ", " + format_bytes(available) + " are free",
                "free some space and start again, the last checkpoint is intact");

  const std::string name = step_name(state.step), final_path = directory_ + "/" + name;
  const std::string temporary = directory_ + "/.tmp-" + name;
  std::error_code ignored;
  fs::remove_all(temporary, ignored);
  make_directories(temporary);
  try {
    json files;
    auto tensors = [&](const char* file, const std::vector<NamedView>& views) {
      const WrittenFile w =
          write_safetensors(temporary + "/" + file, views, {{"step", std::to_string(state.step)}});
      files[file] = {{"bytes", w.bytes}, {"xxh3_128", w.xxh3_128}};
    };
    tensors(kModelFile, model);
    tensors(kOptimizerFile, optimizer);
    write_text(temporary + "/" + kStateFile, to_json(state), files, kStateFile);
    json manifest = {{"format", kFormat},
                     {"step", state.step},
                     {"tokens", state.tokens},
                     {"world_size", 1},
                     {"config_hash", state.config_hash},
                     {"files", files}};
    write_text(temporary + "/" + kManifestFile, manifest.dump(1) + "\n", files, "");
    sync_directory(temporary);
    if (!file_exists(directory_ + "/" + kMarkerFile))
      write_file_atomic(directory_ + "/" + kMarkerFile, "this run has saved checkpoints\n");
    // A damaged checkpoint of the same step makes room; an intact one is never saved again.
    if (file_exists(final_path)) remove({final_path, state.step});
    if (::rename(temporary.c_str(), final_path.c_str()) != 0)
      throw_errno("cannot rename '" + temporary + "' to '" + final_path + "'");
    sync_directory(directory_);
  } catch (...) {
    fs::remove_all(temporary, ignored);
    throw;
  }
  write_file_atomic(directory_ + "/latest", name + "\n");
  retain(keep);
}

// Keeps the newest keep_last and, for good, the first one of every keep_every_tokens.
void CheckpointStore::retain(const CheckpointConfig& keep) const {
  const std::vector<Checkpoint> all = list();
  const auto last = static_cast<size_t>(std::max<int64_t>(2, keep.keep_last));
  for (size_t i = last; i < all.size(); ++i) {
    if (keep.keep_every_tokens > 0) {
      const int64_t tokens = load_state(all[i]).tokens;
      const int64_t before = i + 1 < all.size() ? load_state(all[i + 1]).tokens : 0;
      if (tokens / keep.keep_every_tokens > before / keep.keep_every_tokens) continue;
    }
    remove(all[i]);
  }
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
  const std::string manifest_path = checkpoint.path + "/" + kManifestFile;
  auto refuse = [&](const std::string& why) {
    throw Error(Exit::data, "checkpoint '" + checkpoint.path + "': " + why);
  };
  if (!file_exists(manifest_path)) refuse("manifest.json is missing");
  json manifest;
  std::map<std::string, std::pair<int64_t, std::string>> files;
  try {
    manifest = json::parse(read_file(manifest_path, 1 << 20));
    if (manifest.at("format").get<int>() != kFormat) refuse("manifest.json has an unknown format");
    if (manifest.at("step").get<int64_t>() != checkpoint.step)
      refuse("manifest.json is of another step");
    for (const auto& [name, entry] : manifest.at("files").items())
      files[name] = {entry.at("bytes").get<int64_t>(), entry.at("xxh3_128").get<std::string>()};
  } catch (const json::exception& e) {
    refuse("manifest.json is damaged");
  }
  for (const char* name : {kModelFile, kOptimizerFile, kStateFile})
    if (!files.count(name)) refuse(std::string("manifest.json does not list ") + name);
  for (const auto& [name, expected] : files) {
    if (name.find('/') != std::string::npos) refuse("manifest.json names a file elsewhere");
    const std::string path = checkpoint.path + "/" + name;
    if (!file_exists(path)) refuse(name + " is missing");
    int64_t bytes = 0;
    const std::string hash = hash_file(path, bytes);
    if (bytes != expected.first) refuse(name + " has the wrong size");
    if (hash != expected.second) refuse(name + " is damaged (its hash differs)");
  }
  for (const auto& entry : fs::directory_iterator(checkpoint.path)) {
    const std::string name = entry.path().filename();
    if (name != kManifestFile && !files.count(name)) refuse("'" + name + "' does not belong there");
  }
  const TrainState state = load_state(checkpoint);
  if (state.step != checkpoint.step) refuse("state.json is of another step");
  if (state.config_hash != manifest.value("config_hash", ""))
    refuse("state.json is of another run");
}

TrainState CheckpointStore::load_state(const Checkpoint& checkpoint) {
  const std::string path = checkpoint.path + "/" + kStateFile;
  return train_state_from_json(read_file(path, 1 << 20), path);
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
