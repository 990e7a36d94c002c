#include "config/check.h"

#include "config/value.h"

namespace kla {
namespace {

std::string number(int64_t value) {
  return std::to_string(value);
}

// Sizes of a micro-batch that divide `samples`, as "1, 2, 4 or 8".
std::string divisors(int64_t samples) {
  std::vector<int64_t> found;
  for (int64_t n = 1; n <= samples && n <= 1024 && found.size() < 12; ++n)
    if (samples % n == 0) found.push_back(n);
  std::string text;
  for (size_t i = 0; i < found.size(); ++i)
    text += (i == 0 ? "" : i + 1 == found.size() ? " or " : ", ") + number(found[i]);
  return text;
}

void check_model(const ModelConfig& model, const CrossCheck& report) {
  if (!model.tie_word_embeddings)
    report.error({"model.tie_word_embeddings"}, "'model.tie_word_embeddings' must be true",
                 "an output layer of its own does not exist yet");
}

void check_batch(const Config& config, const CrossCheck& report) {
  const int64_t batch = config.train.global_batch_tokens, T = config.data.seq_len,
                B = config.train.micro_batch_size;
  if (batch == 0 || batch % (T * B) == 0) return;
  const int64_t below = batch / (T * B) * (T * B), above = below + T * B;
  std::string note = "nearest global_batch_tokens: ";
  note += (below > 0 ? number(below) + " or " : "") + number(above);
  if (batch % T == 0)
    note +=
        "; or, with its " + number(batch / T) + " samples, micro_batch_size " + divisors(batch / T);
  report.error({"train.global_batch_tokens", "train.micro_batch_size", "data.seq_len"},
               "'train.global_batch_tokens' = " + number(batch) +
                   " is not a multiple of data.seq_len * train.micro_batch_size = " + number(T) +
                   " * " + number(B) + " = " + number(T * B),
               note);
}

void check_schedule(const Config& config, const CrossCheck& report) {
  const ScheduleConfig& schedule = config.schedule;
  const int64_t max = config.train.max_tokens, warmup = schedule.warmup_tokens;
  if (max == 0) return;
  if (warmup > max) {
    report.error({"schedule.warmup_tokens", "train.max_tokens"},
                 "'schedule.warmup_tokens' = " + number(warmup) +
                     " is longer than the run: train.max_tokens = " + number(max),
                 "1% of train.max_tokens is " + number(max / 100));
  } else if (schedule.name == "wsd" && schedule.decay_tokens > max - warmup) {
    report.error({"schedule.decay_tokens", "schedule.warmup_tokens", "train.max_tokens"},
                 "'schedule.warmup_tokens' + 'schedule.decay_tokens' = " + number(warmup) + " + " +
                     number(schedule.decay_tokens) +
                     " is longer than the run: train.max_tokens = " + number(max),
                 "at most " + number(max - warmup) + " tokens are left for the decay");
  }
}

}  // namespace

bool CrossCheck::failed(const std::string& path) const {
  for (const std::string& bad : failed_)
    if (path == bad || path.rfind(bad + ".", 0) == 0) return true;
  return false;
}

void CrossCheck::error(const std::vector<std::string>& paths, const std::string& message,
                       const std::string& note) const {
  const Origin* place = nullptr;
  for (const std::string& path : paths) {
    if (failed(path)) return;
    if (!place) place = sources_.origin_of(path);
  }
  diagnostics_.error(place ? *place : Origin{}, message, note);
}

void check(const Config& config, const CrossCheck& report) {
  check_model(config.model, report);
  check_batch(config, report);
  check_schedule(config, report);
}

void check(const PrepareConfig& config, const CrossCheck& report) {
  if (config.max_val_documents > 0 && config.val_inputs.empty())
    report.error({"max_val_documents", "val_inputs"},
                 "'max_val_documents' has no effect without 'val_inputs'",
                 "set val_inputs, or use val_fraction");
}

void check(const BenchConfig& config, const CrossCheck& report) {
  check_model(config.model, report);
}

void check_required(const Schema& schema, const CrossCheck& report) {
  for (const Field& field : schema.fields())
    if (field.traits.required && is_empty(field.slot))
      report.error({field.path}, "'" + field.path + "' is not set",
                   "it needs " + expectation(field) + ": " + field.doc);
}

}  // namespace kla
