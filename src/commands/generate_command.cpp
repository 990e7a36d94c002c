// kla generate: continues a prompt; the text streams to stdout as it is made.
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>

#include "commands/arguments.h"
#include "commands/commands.h"
#include "commands/setup.h"
#include "core/clock.h"
#include "core/log.h"
#include "eval/generator.h"
#include "train/signals.h"

namespace kla {
namespace {

// Prints text as far as it is complete: a token may end inside a UTF-8 character.
class TextStream {
 public:
  explicit TextStream(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void add(int32_t token) {
    tokens_.push_back(token);
    const std::string text = tokenizer_.decode(tokens_);
    size_t end = text.size();
    if (text.size() >= 3 && text.compare(text.size() - 3, 3, "\xEF\xBF\xBD") == 0)
      end = text.size() - 3;  // an unfinished character decodes to U+FFFD
    if (end > printed_) {
      std::fwrite(text.data() + printed_, 1, end - printed_, stdout);
      std::fflush(stdout);
      printed_ = end;
    }
    if (tokens_.size() > 64 && end == text.size()) {  // keep the cost of decoding constant
      tokens_.assign(1, token);
      printed_ = tokenizer_.decode(tokens_).size();
    }
  }

 private:
  const Tokenizer& tokenizer_;
  std::vector<int32_t> tokens_;
  size_t printed_ = 0;
};

void check(const Sampling& s, int64_t max_tokens) {
  if (s.temperature < 0) throw Error(Exit::usage, "--temperature is 0 or more");
  if (s.top_p <= 0 || s.top_p > 1) throw Error(Exit::usage, "--top-p is above 0 and at most 1");
  if (s.top_k < 0) throw Error(Exit::usage, "--top-k is 0 or more");
  if (max_tokens < 1) throw Error(Exit::usage, "--max-tokens is at least 1");
}

}  // namespace

int generate_command(const CommandLine& command_line) {
  std::string run, prompt, checkpoint;
  std::vector<std::string> overrides;
  Sampling sampling;
  int64_t max_tokens = 200;
  bool statistics = false, ignore_end = false;
  Arguments arguments("generate", "Continues a prompt with the newest checkpoint of a run.",
                      "kla generate runs/quickstart/kla --prompt \"A dog is\" --temperature 0.8\n"
                      "  echo \"A dog is\" | kla generate runs/quickstart/kla");
  arguments.positional("run", run, "run directory", true);
  arguments.option("--prompt", prompt, "text to continue; default: standard input");
  arguments.option("--max-tokens", max_tokens, "tokens to write at most");
  arguments.option("--temperature", sampling.temperature, "0: always the most likely token");
  arguments.option("--top-k", sampling.top_k, "sample among the k most likely tokens; 0: all");
  arguments.option("--top-p", sampling.top_p, "sample among the most likely tokens of this mass");
  arguments.option("--seed", sampling.seed, "of the sampling");
  arguments.option("--checkpoint", checkpoint, "step-NNNNNNNN; default: the newest intact one");
  arguments.flag("--ignore-end", ignore_end, "go on after an end-of-text token");
  arguments.flag("--stats", statistics, "print tokens per second to stderr");
  arguments.overrides(overrides);
  if (!arguments.parse(command_line)) return 0;
  check(sampling, max_tokens);
  if (prompt.empty()) {
    prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
    while (!prompt.empty() && prompt.back() == '\n') prompt.pop_back();
  }

  register_model_choices();
  SignalGuard signals;
  const LoadedConfig loaded = load_run_config(run, overrides);
  std::unique_ptr<Generator> generator;
  LoadedModel model(
      loaded.config, checkpoint,
      [&](Runtime& runtime, LanguageModel& language_model, const Weights& weights) {
        generator = std::make_unique<Generator>(runtime.context, runtime.memory["decoding"],
                                                language_model, weights);
      },
      [&] { generator->plan(); });
  const Tokenizer tokenizer = open_run_tokenizer(loaded.config, model.state.tokenizer_sha256);

  sampling.vocabulary = tokenizer.vocab_size();
  generator->restart();
  std::vector<int32_t> tokens;
  if (tokenizer.bos_id() >= 0) tokens.push_back(tokenizer.bos_id());
  tokenizer.encode(prompt, tokens);
  if (tokens.empty()) tokens.push_back(tokenizer.eos_id());
  const auto start = Clock::now();
  generator->read(tokens);
  const auto prefilled = Clock::now();

  TextStream stream(tokenizer);
  for (size_t i = tokenizer.bos_id() >= 0 ? 1 : 0; i < tokens.size(); ++i) stream.add(tokens[i]);
  int64_t written = 0;
  while (written < max_tokens && !stop_requested()) {
    const int32_t token = generator->next(sampling);
    ++written;
    if (token == tokenizer.eos_id() && !ignore_end) break;
    stream.add(token);
  }
  std::fputs("\n", stdout);
  if (statistics) {
    const double prefill = std::chrono::duration<double>(prefilled - start).count();
    const double decode = seconds_since(prefilled);
    std::fprintf(stderr, "prefill %zu tokens in %.3f s; %lld tokens in %.3f s, %.1f tokens/s\n",
                 tokens.size(), prefill, static_cast<long long>(written), decode,
                 static_cast<double>(written) / decode);
  }
  return 0;
}

}  // namespace kla
