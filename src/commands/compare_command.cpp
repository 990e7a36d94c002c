// kla compare A B: what two trained models lose on the same validation windows, document by
// document.
#include <cmath>
#include <cstdio>
#include <memory>
#include <tuple>

#include "commands/arguments.h"
#include "commands/commands.h"
#include "commands/setup.h"
#include "core/log.h"
#include "eval/perplexity.h"
#include "report/run_reader.h"
#include "train/progress.h"
#include "train/signals.h"

namespace kla {
namespace {

// A run as far as it is needed before its model is loaded.
struct Side {
  std::string path;
  LoadedConfig loaded;
  TokenDataset data;     // validation
  std::string training;  // identity of the training set
};

Side open_side(const std::string& path) {
  LoadedConfig loaded = load_run_config(path);
  if (loaded.config.data.val.empty())
    throw Error(Exit::usage, "'" + path + "' has no validation set",
                "set data.val in its config.yaml");
  TokenDataset data = open_validation(loaded);
  const report::KeyValues record = report::read_flat_json(path + "/run.json");
  return {path, std::move(loaded), std::move(data), report::value_of(record, "data.train")};
}

[[noreturn]] void refuse(const Side& a, const Side& b, const char* what) {
  throw Error(Exit::data, "'" + a.path + "' and '" + b.path + "' have " + what,
              "only losses on the same targets can be compared");
}

// The newest checkpoint on the whole validation set, one model in memory at a time.
std::vector<Perplexity> score(const Side& side, const std::vector<int64_t>& lengths) {
  const Tokenizer tokenizer = open_tokenizer(side.data);
  std::vector<std::unique_ptr<Scorer>> scorers;
  LoadedModel model(
      side.loaded.config, "",
      [&](Runtime& runtime, LanguageModel& language_model, const Weights& weights) {
        scorers.clear();
        for (int64_t length : lengths)
          scorers.push_back(std::make_unique<Scorer>(runtime.context, runtime.memory["evaluation"],
                                                     language_model, weights, length));
      },
      [&] {
        for (auto& scorer : scorers) scorer->plan();
      });
  side.data.require_tokenizer(model.state.tokenizer_sha256, side.path);
  std::vector<Perplexity> scored;
  for (size_t i = 0; i < lengths.size(); ++i)
    scored.push_back(evaluate_perplexity(
        *scorers[i], side.data, tokenizer.token_bytes(),
        {.length = lengths[i], .reset_at_documents = side.loaded.config.data.reset_at_documents},
        [&](int64_t done, int64_t total) {
          log::status_line("evaluating " + side.path + " " + progress_bar(done, total));
          if (stop_requested()) throw Error(Exit::stopped, "comparison stopped by a signal");
        }));
  log::status_line("");
  return scored;
}

std::string verdict(const PairedLoss& paired) {
  if (std::isnan(paired.low)) return "one document: no interval";
  if (paired.low > 0) return "A is better on these documents";
  if (paired.high < 0) return "B is better on these documents";
  return "not separable on these documents";
}

void print(const Side& a, const Side& b, const Perplexity& x, const Perplexity& y) {
  const PairedLoss paired = compare_losses(x.by_document, y.by_document);
  log::info("context " + std::to_string(x.length) + ", " + std::to_string(paired.targets) +
            " targets in " + std::to_string(paired.documents) + " documents");
  char text[200];
  for (const auto& [name, p, path] : {std::tuple{'A', &x, &a.path}, std::tuple{'B', &y, &b.path}}) {
    std::snprintf(text, sizeof text, "  %c      loss %.4f, ppl %.2f  ", name, p->loss, p->ppl());
    log::info(text + *path);
  }
  std::snprintf(text, sizeof text,
                "  B - A  %+.4f nats [%+.4f, %+.4f], perplexity ratio %.4f: ", paired.difference,
                paired.low, paired.high, std::exp(paired.difference));
  log::info(text + verdict(paired));
}

}  // namespace

int compare_command(const CommandLine& command_line) {
  std::string first, second;
  std::vector<int64_t> lengths;
  Arguments arguments("compare",
                      "Loss difference of two runs on the same validation windows, paired by "
                      "document, with a 95 % bootstrap interval over documents.",
                      "kla compare runs/quickstart/kla runs/quickstart/gdn --context 128,512");
  arguments.positional("A", first, "run directory", true);
  arguments.positional("B", second, "run directory", true);
  arguments.option("--context", lengths, "context lengths, tokens; default: A's data.seq_len");
  if (!arguments.parse(command_line)) return 0;
  for (int64_t length : lengths)
    if (length < 1) throw Error(Exit::usage, "--context: a length is at least 1 token");

  register_model_choices();
  SignalGuard signals;
  const Side a = open_side(first), b = open_side(second);
  if (a.data.tokenizer_sha256() != b.data.tokenizer_sha256()) refuse(a, b, "different tokenizers");
  if (a.data.identity() != b.data.identity()) refuse(a, b, "different validation sets");
  if (a.training != b.training) refuse(a, b, "different training sets");
  if (lengths.empty()) lengths = {a.loaded.config.data.seq_len};
  const std::vector<Perplexity> x = score(a, lengths), y = score(b, lengths);
  for (size_t i = 0; i < lengths.size(); ++i) print(a, b, x[i], y[i]);
  log::info(
      "one run each: the interval is a paired bootstrap over documents and says how exactly these "
      "two models were measured, not how other seeds would have done (kla sweep does)");
  return 0;
}

}  // namespace kla
