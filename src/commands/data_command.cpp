#include "commands/data_command.h"

#include <atomic>
#include <csignal>
#include <cstdio>

#include "config/load.h"
#include "core/error.h"
#include "core/file.h"
#include "core/log.h"
#include "data/dataset.h"
#include "data/prepare.h"
#include "data/tokenizer.h"

namespace kla {
namespace {

std::atomic<bool> interrupted = false;

// The first Ctrl-C asks to stop, the second one ends the process at once.
void listen_for_interrupts() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted = true; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

template <class... Values>
void print(const char* format, Values... values) {
  char line[512];
  std::snprintf(line, sizeof(line), format, values...);
  log::info(line);
}

double ratio(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

void print_skipped(const CorpusCounts& c) {
  if (c.skipped() == 0) return;
  print(
      "skipped    %lld bad documents: %lld not UTF-8, %lld too long, %lld not JSON, %lld without "
      "text",
      static_cast<long long>(c.skipped()), static_cast<long long>(c.invalid_utf8),
      static_cast<long long>(c.too_long), static_cast<long long>(c.malformed),
      static_cast<long long>(c.missing_field));
}

void print_summary(const PrepareSummary& summary, const std::string& output) {
  const PreparedCounts& c = summary.counts;
  const int64_t tokens = c.train_tokens + c.val_tokens;
  print("train      %lld documents, %lld tokens", static_cast<long long>(c.train_documents),
        static_cast<long long>(c.train_tokens));
  print("val        %lld documents, %lld tokens", static_cast<long long>(c.val_documents),
        static_cast<long long>(c.val_tokens));
  print("text       %.1f MB, %.3f bytes/token, %.2f %% of the tokens are single bytes or unknown",
        static_cast<double>(c.text_bytes) * 1e-6, ratio(c.text_bytes, tokens),
        100 * ratio(c.fallback_tokens, tokens));
  if (summary.already_done) {
    log::info("'" + output + "' already holds this preparation: nothing to do");
    return;
  }
  print_skipped(summary.corpus);
  if (summary.training_seconds > 0) print("tokenizer  trained in %.1f s", summary.training_seconds);
  print("tokenized  in %.1f s, %.1f MB/s", summary.tokenizing_seconds,
        static_cast<double>(c.text_bytes) * 1e-6 / summary.tokenizing_seconds);
  log::info("wrote      " + output);
}

void check_split(const std::string& directory) {
  const TokenDataset data = TokenDataset::open(directory, 0, Verify::payload);
  print("%s: ok, %lld documents, %lld tokens, %.3f bytes/token, vocabulary %lld, content %s",
        log::printable(directory).c_str(), static_cast<long long>(data.documents()),
        static_cast<long long>(data.tokens()), ratio(data.text_bytes(), data.tokens()),
        static_cast<long long>(data.vocab_size()), data.identity().c_str());
  const std::string tokenizer = directory + "/../tokenizer.model";
  if (file_exists(tokenizer))
    data.require_tokenizer(Tokenizer::load(tokenizer).sha256(), "'" + tokenizer + "'");
}

}  // namespace

int run_data_prepare(const std::string& config, const std::vector<std::string>& overrides) {
  const LoadedPrepareConfig loaded = load_prepare_config(config, overrides);
  listen_for_interrupts();
  const PrepareSummary summary = prepare_dataset(loaded.config, &interrupted);
  print_summary(summary, loaded.config.output);
  return static_cast<int>(Exit::ok);
}

int run_data_check(const std::vector<std::string>& directories) {
  for (const std::string& directory : directories) {
    bool found = false;
    for (const char* split : {"/train", "/val"})
      if (file_exists(directory + split)) {
        check_split(directory + split);
        found = true;
      }
    if (!found) check_split(directory);
  }
  return static_cast<int>(Exit::ok);
}

}  // namespace kla
