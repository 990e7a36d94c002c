// kla eval: perplexity of a run's newest checkpoint on its validation set, at several context
// lengths.
#include <cmath>
#include <cstdio>
#include <memory>

#include "commands/arguments.h"
#include "commands/commands.h"
#include "commands/setup.h"
#include "core/log.h"
#include "eval/perplexity.h"
#include "train/signals.h"

namespace kla {
namespace {

struct EvalArguments {
  std::string run, checkpoint, protocol = "full";
  std::vector<std::string> overrides;
  std::vector<int64_t> lengths;
  int64_t max_tokens = 0;
};

constexpr int64_t kReleasePrefixes[] = {2048, 4096};

EvalRow row_of(const TrainState& state) {
  EvalRow row;
  row.step = state.step;
  row.tokens = state.tokens;
  row.source = "eval";
  return row;
}

void evaluate_full(LoadedModel& model, const TokenDataset& data,
                   const std::vector<int32_t>& token_bytes, const std::string& run,
                   const PerplexityOptions& options, Scorer& scorer) {
  const Perplexity p =
      evaluate_perplexity(scorer, data, token_bytes, options, [](int64_t done, int64_t total) {
        log::status_line("evaluating " + progress_bar(done, total));
        if (stop_requested()) throw Error(Exit::stopped, "evaluation stopped by a signal");
      });
  log::status_line("");
  log::info(describe(p));
  EvalRow row = row_of(model.state);
  row.length = p.length;
  row.loss = p.loss;
  row.loss_low = p.low;
  row.loss_high = p.high;
  row.n_tokens = p.tokens;
  row.n_bytes = p.bytes;
  row.seconds = p.seconds;
  append_eval_row(run, row);
}

void evaluate_release(LoadedModel& model, const TokenDataset& data, int32_t end_of_text,
                      const std::string& run, Scorer& scorer) {
  const std::vector<int64_t> prefixes(std::begin(kReleasePrefixes), std::end(kReleasePrefixes));
  for (const ReleaseResult& r : evaluate_release_protocol(scorer, data, end_of_text, prefixes)) {
    char text[200];
    std::snprintf(text, sizeof(text),
                  "kla_release prefix %lld | with padding: loss %.4f ppl %.2f | text only: loss "
                  "%.4f ppl %.2f | padding: %.1f %% of targets, loss %.4f",
                  static_cast<long long>(r.prefix), r.loss_padded, std::exp(r.loss_padded),
                  r.loss_text, std::exp(r.loss_text), 100 * r.fill_share, r.loss_fill);
    log::info(text);
    EvalRow row = row_of(model.state);
    row.length = r.prefix;
    row.loss_low = row.loss_high = std::nan("");
    row.protocol = "kla_release_padded";
    row.loss = r.loss_padded;
    row.n_tokens = r.targets;
    append_eval_row(run, row);
    row.protocol = "kla_release_text";
    row.loss = r.loss_text;
    row.n_tokens =
        static_cast<int64_t>(std::llround(static_cast<double>(r.targets) * (1 - r.fill_share)));
    append_eval_row(run, row);
  }
}

}  // namespace

int eval_command(const CommandLine& command_line) {
  EvalArguments a;
  Arguments arguments("eval",
                      "Perplexity over the whole validation set of a run: every real target once, "
                      "no padding, with a 95 % bootstrap interval over documents.",
                      "kla eval runs/quickstart/kla --context 128,512,2048");
  arguments.positional("run", a.run, "run directory", true);
  arguments.option("--context", a.lengths, "context lengths, tokens; default: eval.lengths");
  arguments.option("--checkpoint", a.checkpoint, "step-NNNNNNNN; default: the newest intact one");
  arguments.option("--max-tokens", a.max_tokens, "score about this many targets; 0: all");
  arguments.option("--protocol", a.protocol,
                   "full, or kla_release: prefixes of 2048 and 4096 of 16,385-token blocks, with "
                   "and without end-of-text padding, as the KLA study measured");
  arguments.overrides(a.overrides);
  if (!arguments.parse(command_line)) return 0;
  const bool release = a.protocol == "kla_release";
  if (!release && a.protocol != "full")
    throw Error(Exit::usage, "unknown protocol '" + a.protocol + "'", "choose full or kla_release");
  for (int64_t length : a.lengths)
    if (length < 1) throw Error(Exit::usage, "--context: a length is at least 1 token");

  register_model_choices();
  SignalGuard signals;
  const LoadedConfig loaded = load_run_config(a.run, a.overrides);
  const Config& config = loaded.config;
  const TokenDataset data = open_validation(loaded);
  const Tokenizer tokenizer = open_tokenizer(data);
  std::vector<int64_t> lengths = a.lengths.empty() ? config.eval.lengths : a.lengths;
  if (lengths.empty()) lengths = {config.data.seq_len};
  if (release) lengths = {kReleasePrefixes[1]};

  std::vector<std::unique_ptr<Scorer>> scorers;
  LoadedModel model(
      config, a.checkpoint,
      [&](Runtime& runtime, LanguageModel& language_model, const Weights& weights) {
        scorers.clear();
        for (int64_t length : lengths)
          scorers.push_back(std::make_unique<Scorer>(runtime.context, runtime.memory["evaluation"],
                                                     language_model, weights, length));
      },
      [&] {
        for (auto& scorer : scorers) scorer->plan();
      });
  data.require_tokenizer(model.state.tokenizer_sha256, a.run);
  log::info("run " + a.run + ", step " + std::to_string(model.state.step) + ", " +
            std::to_string(data.tokens() - 1) + " validation targets in " +
            std::to_string(data.documents()) + " documents");
  if (release) {
    evaluate_release(model, data, tokenizer.eos_id(), a.run, *scorers[0]);
    return 0;
  }
  for (size_t i = 0; i < lengths.size(); ++i)
    evaluate_full(model, data, tokenizer.token_bytes(), a.run,
                  {.length = lengths[i],
                   .max_tokens = a.max_tokens,
                   .reset_at_documents = config.data.reset_at_documents},
                  *scorers[i]);
  return 0;
}

}  // namespace kla
