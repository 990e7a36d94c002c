// kla bench: the training step of a model, op by op, against the yardsticks of this machine; and
// the time of one decoding step at several positions. A table for people, JSON lines for programs.
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "commands/arguments.h"
#include "commands/commands.h"
#include "commands/setup.h"
#include "commands/step_bench.h"
#include "core/file.h"
#include "core/memory.h"

namespace kla {
namespace {

using Json = nlohmann::ordered_json;

bool wanted(const BenchConfig& config, const std::string& op) {
  return config.ops.empty() ||
         std::find(config.ops.begin(), config.ops.end(), op) != config.ops.end();
}

const char* name_of(Product::Form form) {
  switch (form) {
    case Product::Form::forward:
      return "x w^T";
    case Product::Form::input:
      return "dy w";
    case Product::Form::weight:
      return "dy^T x";
  }
  return "?";
}

void print_ops(const BenchConfig& config, const StepTimings& t) {
  std::printf("%-24s %-20s %6s %9s %7s %9s %7s %9s\n", "op", "shape", "calls", "ms/step", "% step",
              "GFLOP/s", "GB/s", "% limit");
  for (const OpTiming& op : t.ops) {
    if (!wanted(config, op.op)) continue;
    const double calls = static_cast<double>(op.calls);
    std::printf("%-24s %-20s %6lld %9.2f %7.1f %9.1f %7.1f %9.0f\n", op.op.c_str(),
                op.cost.shape.c_str(), static_cast<long long>(op.calls), 1e3 * op.best,
                100 * op.total / t.profiled_seconds, 1e-9 * calls * op.cost.flops / op.best,
                1e-9 * calls * op.cost.bytes / op.best, 100 * t.limit_seconds(op) / op.best);
  }
}

void print_yardsticks(const StepTimings& t) {
  std::printf("\n%-8s %-20s %9s %12s %12s\n", "product", "m x n x k", "GFLOP",
              (t.library + " GF/s").c_str(), "panels GF/s");
  for (const ProductTiming& p : t.products)
    std::printf("%-8s %6lld %6lld %6lld %9.1f %12.1f %12.1f\n", name_of(p.product.form),
                static_cast<long long>(p.product.m), static_cast<long long>(p.product.n),
                static_cast<long long>(p.product.k), 1e-9 * p.flops, 1e-9 * p.library,
                1e-9 * p.ours);
  std::printf("all products: %s %.1f, panels %.1f, the better of both %.1f GFLOP/s\n",
              t.library.c_str(), 1e-9 * t.library_rate(), 1e-9 * t.our_rate(),
              1e-9 * t.sgemm_rate());
  std::printf("copying memory: %.1f GB/s\n", 1e-9 * t.copy_rate);
}

void print_step(const StepTimings& t) {
  const double rate = t.product_flops() / t.best_seconds();
  const double tokens = static_cast<double>(t.tokens);
  std::printf("\nstep of %lld tokens on %d threads: best %.1f ms, median %.1f ms, %.0f tokens/s\n",
              static_cast<long long>(t.tokens), t.threads, 1e3 * t.best_seconds(),
              1e3 * t.median_seconds(), tokens / t.best_seconds());
  std::printf("products at %.1f GFLOP/s over the whole step: %.1f %% of the sgemm rate\n",
              1e-9 * rate, 100 * rate / t.sgemm_rate());
  std::printf("of the time: products %.1f %%, mixer %.1f %%, elementwise %.1f %%, update %.1f %%\n",
              100 * t.share(OpKind::product), 100 * t.share(OpKind::mixer),
              100 * t.share(OpKind::elementwise), 100 * t.share(OpKind::update));
  std::printf("memory %s, high-water marks %s\n", format_bytes(t.memory_bytes).c_str(),
              t.memory_as_planned ? "as planned" : "NOT as planned");
}

Json json_of(const OpTiming& op, const StepTimings& t) {
  return {{"kind", "op"},
          {"op", op.op},
          {"class", name_of(op.cost.kind)},
          {"shape", op.cost.shape},
          {"calls", op.calls},
          {"seconds", op.best},
          {"flops", op.cost.flops * static_cast<double>(op.calls)},
          {"bytes", op.cost.bytes * static_cast<double>(op.calls)},
          {"limit_seconds", t.limit_seconds(op)}};
}

Json json_of(const ProductTiming& p) {
  return {{"kind", "product"},
          {"form", name_of(p.product.form)},
          {"m", p.product.m},
          {"n", p.product.n},
          {"k", p.product.k},
          {"flops", p.flops},
          {"library_flops_s", p.library},
          {"panels_flops_s", p.ours}};
}

Json json_of(const StepTimings& t) {
  return {{"kind", "step"},
          {"threads", t.threads},
          {"tokens", t.tokens},
          {"seconds_best", t.best_seconds()},
          {"seconds_median", t.median_seconds()},
          {"tokens_s", static_cast<double>(t.tokens) / t.best_seconds()},
          {"product_flops", t.product_flops()},
          {"sgemm_flops_s", t.sgemm_rate()},
          {"share_of_sgemm", t.product_flops() / t.best_seconds() / t.sgemm_rate()},
          {"copy_bytes_s", t.copy_rate},
          {"share_products", t.share(OpKind::product)},
          {"share_mixer", t.share(OpKind::mixer)},
          {"share_elementwise", t.share(OpKind::elementwise)},
          {"share_update", t.share(OpKind::update)},
          {"memory_bytes", t.memory_bytes},
          {"memory_as_planned", t.memory_as_planned}};
}

// Tokens a second of all rows, decoding and reading ahead.
double decode_rate(const BenchConfig& config, const DecodeTiming& d) {
  return static_cast<double>(config.batch) / d.seconds;
}
double prefill_rate(const BenchConfig& config, const DecodeTiming& d) {
  return static_cast<double>(config.batch * d.prefilled) / d.prefill_seconds;
}

void print_decoding(const BenchConfig& config, const DecodeTiming& d) {
  std::printf(
      "decoding at position %lld: %.3f ms a step of %lld rows, %.0f tokens/s; prefill before it "
      "%.0f tokens/s\n",
      static_cast<long long>(d.position), 1e3 * d.seconds, static_cast<long long>(config.batch),
      decode_rate(config, d), prefill_rate(config, d));
}

Json json_of(const BenchConfig& config, const DecodeTiming& d) {
  return {{"kind", "decode"},
          {"batch", config.batch},
          {"position", d.position},
          {"seconds", d.seconds},
          {"tokens_s", decode_rate(config, d)},
          {"prefill_tokens_s", prefill_rate(config, d)}};
}

std::string json_lines(const BenchConfig& config, const StepTimings& t) {
  std::string lines;
  for (const OpTiming& op : t.ops)
    if (wanted(config, op.op)) lines += json_of(op, t).dump() + "\n";
  for (const ProductTiming& p : t.products) lines += json_of(p).dump() + "\n";
  if (config.whole_step) lines += json_of(t).dump() + "\n";
  return lines;
}

}  // namespace

int bench_command(const CommandLine& command_line) {
  std::string file, json;
  bool decode_only = false;
  std::vector<int64_t> positions;
  std::vector<std::string> overrides;
  Arguments arguments("bench", "Times a training step op by op, against this machine's limits.",
                      "kla bench configs/bench/cpu.yaml seq_len=4096 --json bench.jsonl");
  arguments.positional("config", file, "YAML config; key=value words after it override", true);
  arguments.option("--json", json, "also write JSON lines to this file");
  arguments.option("--decode", positions,
                   "also time decoding after so many tokens, e.g. 128,32768");
  arguments.flag("--decode-only", decode_only, "time decoding and prefill, not the training step");
  arguments.overrides(overrides);
  if (!arguments.parse(command_line)) return 0;

  register_model_choices();
  std::vector<Choice> ops;
  for (const OpBase* op : OpBase::all()) ops.push_back({op->name(), {}});
  register_choices("ops", ops);
  const BenchConfig config = load_bench_config(file, overrides).config;

  std::string lines;
  if (!decode_only) {
    const StepTimings timings = time_training_steps(config);
    print_ops(config, timings);
    print_yardsticks(timings);
    if (config.whole_step) print_step(timings);
    lines = json_lines(config, timings);
  }
  const std::vector<DecodeTiming> decoding =
      positions.empty() ? std::vector<DecodeTiming>() : time_decoding(config, positions);
  for (const DecodeTiming& d : decoding) {
    print_decoding(config, d);
    lines += json_of(config, d).dump() + "\n";
  }
  if (!json.empty()) write_file_atomic(json, lines);
  return 0;
}

}  // namespace kla
