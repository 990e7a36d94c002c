// kla check: are the mixers of a trained run computed correctly, here, with this checkpoint?
#include "commands/check_command.h"

#include <algorithm>
#include <cstdio>
#include <memory>

#include "commands/arguments.h"
#include "commands/commands.h"
#include "commands/setup.h"

namespace kla {
namespace {

constexpr int64_t kTokens = 300;  // several chunks of 64 and a short one

struct Text {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> reset;  // empty: the model was trained without resets
};

Text read_text(const TokenDataset& data, int64_t count, bool resets) {
  Text text;
  text.tokens.resize(static_cast<size_t>(count));
  data.read(0, count, text.tokens.data());
  if (resets) {
    text.reset.resize(static_cast<size_t>(count));
    data.document_starts(0, count, text.reset.data());
    text.reset[0] = 0;  // the text starts from the empty state anyway
  }
  return text;
}

}  // namespace

void report_check(const std::vector<LayerCheck>& layers, const CheckBounds& bounds) {
  size_t failed = 0;
  std::printf("relative RMS error of the mixer's output or final state, the larger one\n\n");
  std::printf("%-6s %12s %12s %12s %12s %8s\n", "layer", "chunkwise", "recurrent", "chunkwise",
              "chunkwise", "worst");
  std::printf("%-6s %12s %12s %12s %12s %8s\n", "", "- double", "- double", "- recurrent",
              "- rec., f64", "/ bound");
  std::printf("%-6s %12.1e %12.1e %12.1e %12.1e\n", "bound", bounds.device, bounds.device,
              bounds.between, bounds.definition);
  for (const LayerCheck& c : layers) {
    const double ratio = worst_ratio(c, bounds);
    const bool passed = ratio <= 1;  // a NaN is none
    if (!passed) ++failed;
    std::printf("%-6lld %12.2e %12.2e %12.2e %12.2e %8.3f  %s\n", static_cast<long long>(c.layer),
                c.chunkwise, c.recurrent, c.between, c.definition, ratio, passed ? "pass" : "FAIL");
  }
  if (failed > 0)
    throw Error(Exit::numerical,
                std::to_string(failed) + " of " + std::to_string(layers.size()) +
                    " layers are not computed as the reference computes them",
                "one of chunkwise and recurrent is wrong: a kernel of this device; both: a gain "
                "far above 2 (see log.probe_interval_steps), or a device with a defect");
  std::printf("\npass: %zu layers\n", layers.size());
}

int check_command(const CommandLine& command_line) {
  std::string run, checkpoint;
  std::vector<std::string> overrides;
  int64_t count = kTokens;
  Arguments arguments("check",
                      "Computes the mixers of a run's checkpoint on real text in three ways: "
                      "chunkwise and token by token on the run's device, and by the reference in "
                      "double. Exit code 5 if they differ by more than the bounds.",
                      "kla check runs/quickstart/kla");
  arguments.positional("run", run, "run directory", true);
  arguments.option("--checkpoint", checkpoint, "step-NNNNNNNN; default: the newest intact one");
  arguments.option("--tokens", count, "length of the text, tokens; default: 300");
  arguments.overrides(overrides);
  if (!arguments.parse(command_line)) return 0;
  if (count < 2) throw Error(Exit::usage, "--tokens: at least 2");

  register_model_choices();
  const LoadedConfig loaded = load_run_config(run, overrides);
  const Config& config = loaded.config;
  const std::string& folder = config.data.val.empty() ? config.data.train : config.data.val;
  const TokenDataset data = TokenDataset::open(folder, config.model.vocab_size, Verify::headers);
  count = std::min(count, data.tokens());
  std::unique_ptr<MixerCheck> check;
  LoadedModel model(
      config, checkpoint,
      [&](Runtime& runtime, LanguageModel& language_model, const Weights& weights) {
        check = std::make_unique<MixerCheck>(runtime, language_model, weights,
                                             config.model.num_hidden_layers, count);
      },
      [&] { check->plan(); });
  data.require_tokenizer(model.state.tokenizer_sha256, run);

  const Context& ctx = model.runtime.context;
  const Text text = read_text(data, count, config.data.reset_at_documents);
  const std::vector<LayerCheck> layers = check->run(text.tokens, text.reset);
  const CheckBounds bounds = check_bounds(ctx.compute);
  std::printf("run %s, step %lld, rule %s, on %s in %s, %lld tokens of %s\n", run.c_str(),
              static_cast<long long>(model.state.step), config.model.step_size.rule.c_str(),
              name_of(ctx.device), name_of(ctx.compute), static_cast<long long>(count),
              folder.c_str());
  report_check(layers, bounds);
  return 0;
}

}  // namespace kla
