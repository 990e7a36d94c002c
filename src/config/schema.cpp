#include "config/schema.h"

#include <algorithm>

namespace kla {

void Schema::add(const std::string& name, Slot slot, const std::string& doc, Traits traits) {
  fields_.push_back({join(prefix_, name), slot, doc, std::move(traits)});
}

const Field* Schema::find(const std::string& path) const {
  for (const Field& field : fields_)
    if (field.path == path) return &field;
  return nullptr;
}

bool Schema::is_section(const std::string& path) const {
  return path.empty() || std::any_of(sections_.begin(), sections_.end(),
                                     [&](const Section& s) { return s.path == path; });
}

std::vector<std::string> Schema::names_below(const std::string& section) const {
  std::vector<std::string> names;
  const auto take = [&](const std::string& path) {
    const size_t dot = path.rfind('.');
    if ((dot == std::string::npos ? "" : path.substr(0, dot)) == section)
      names.push_back(path.substr(dot == std::string::npos ? 0 : dot + 1));
  };
  for (const Field& field : fields_) take(field.path);
  for (const Section& inner : sections_) take(inner.path);
  std::sort(names.begin(), names.end());
  return names;
}

namespace {

constexpr double kMaxTokens = 1e15;
constexpr double kMaxSize = 1 << 24;  // of one dimension of a model

}  // namespace

// One function for each struct, found by Schema::section.

static void describe(Schema& s, RunConfig& c) {
  s.add("name", &c.name, "name of the run",
        {.words = Words::file_name, .safe = true, .required = true});
  s.add("dir", &c.dir, "run directory; {name} and {seed} are replaced",
        {.safe = true, .path = true, .required = true});
  s.add("seed", &c.seed, "seed of the initial values (the data order has data.shuffle_seed)");
  s.add("resume", &c.resume,
        "what to do with checkpoints in the run directory: continue if there is one, start anew, "
        "or insist on one",
        {.choices = {"auto", "never", "must"}, .safe = true});
  s.add("tags", &c.tags, "free words for tables", {.safe = true});
}

static void describe(Schema& s, StepSizeConfig& c) {
  s.add("rule", &c.rule, "how the step size beta is made (kernels/step_rules.h)",
        {.words = Words::identifier});
  s.add("seq_factor", &c.seq_factor, "factor of beta that falls with the position t",
        {.choices = {"none", "inv_t", "inv_sqrt_t", "inv_log_t"}});
  s.add("gate", &c.gate, "dual: a decay gate of its own; single: g = ln(1 - eta)",
        {.choices = {"dual", "single"}});
  s.add("eps", &c.eps, "added to the squared key norm", {.min = 0, .above_min = true});
  s.add("learned_scalar_init", &c.learned_scalar_init,
        "lambda = softplus(theta) at the start, rules that learn a scalar",
        {.min = 0, .above_min = true});
}

static void describe(Schema& s, ModelConfig& c) {
  s.add("mixer", &c.mixer, "kind of the sequence layers", {.choices = {"gated_delta"}});
  s.add("hidden_size", &c.hidden_size, "width D of the residual stream",
        {.min = 1, .max = kMaxSize});
  s.add("num_hidden_layers", &c.num_hidden_layers, "layers L", {.min = 1, .max = 10000});
  s.add("num_heads", &c.num_heads, "heads H", {.min = 1, .max = 10000});
  s.add("key_head_dim", &c.key_head_dim, "key and query width K of a head",
        {.min = 1, .max = kMaxSize});
  s.add("value_head_dim", &c.value_head_dim, "value width V of a head",
        {.min = 1, .max = kMaxSize});
  s.add("conv_size", &c.conv_size, "taps of the short convolution; only 4 exists",
        {.unit = "tokens", .min = 4, .max = 4});
  s.add("intermediate_size", &c.intermediate_size, "width F of the SwiGLU",
        {.min = 1, .max = kMaxSize});
  s.add("norm_eps", &c.norm_eps, "added to the mean square in RMSNorm",
        {.min = 0, .above_min = true});
  s.add("vocab_size", &c.vocab_size, "rows N of the embedding; a multiple of 64 is fastest",
        {.unit = "tokens", .min = 2, .max = kMaxSize});
  s.add("tie_word_embeddings", &c.tie_word_embeddings,
        "the output layer is the embedding; only true exists");
  s.add("beta_bias", &c.beta_bias, "bias of the step-size projection (the study: true)");
  s.add("decay_gate", &c.decay_gate,
        "mamba: g = -exp(A) softplus(a + dt); logsigmoid16: g = ln sigmoid(a + b) / 16",
        {.choices = {"mamba", "logsigmoid16"}});
  s.section("step_size", "the step-size rule", c.step_size);
}

static void describe(Schema& s, DataConfig& c) {
  s.add("train", &c.train, "directory of training shards, written by 'kla data prepare'",
        {.path = true, .required = true});
  s.add("val", &c.val, "directory of validation shards", {.path = true});
  s.add("seq_len", &c.seq_len, "length T of a sample",
        {.unit = "tokens", .min = 1, .max = kMaxSize});
  s.add("shuffle_seed", &c.shuffle_seed, "seed of the sample order, independent of run.seed");
  s.add("epochs", &c.epochs, "passes allowed over the data; 0: as many as train.max_tokens needs",
        {.min = 0, .max = 1e6});
  s.add("reset_at_documents", &c.reset_at_documents,
        "restart state, convolution and position at document boundaries");
}

static void describe(Schema& s, TrainConfig& c) {
  s.add("max_tokens", &c.max_tokens, "target tokens to train on",
        {.unit = "tokens", .min = 0, .max = kMaxTokens, .required = true});
  s.add("global_batch_tokens", &c.global_batch_tokens,
        "tokens of an optimizer step, a multiple of seq_len * micro_batch_size",
        {.unit = "tokens", .min = 0, .max = kMaxTokens, .required = true});
  s.add("micro_batch_size", &c.micro_batch_size, "samples B of a forward pass",
        {.unit = "samples", .min = 1, .max = 1 << 20});
  s.add("grad_clip", &c.grad_clip, "largest global L2 norm of the gradient; 0: off", {.min = 0});
  s.add("recompute", &c.recompute,
        "what backward computes again instead of keeping it; saves memory, changes no bit",
        {.choices = {"none", "mixer", "block"}, .safe = true});
}

static void describe(Schema& s, OptimConfig& c) {
  s.add("name", &c.name, "optimizer", {.choices = {"adamw"}});
  s.add("lr", &c.lr, "peak learning rate", {.min = 0});
  s.add("betas", &c.betas, "decay of the first and second moment",
        {.min = 0, .max = 1, .below_max = true, .count = 2});
  s.add("eps", &c.eps, "added to the root of the second moment", {.min = 0, .above_min = true});
  s.add("weight_decay", &c.weight_decay, "decoupled weight decay", {.min = 0});
  s.add("decay", &c.decay, "what decays: every parameter (the study) or matrices only",
        {.choices = {"all", "matrices"}});
}

static void describe(Schema& s, ScheduleConfig& c) {
  s.add("name", &c.name, "learning rate after the warm-up; wsd: constant, then a linear decay",
        {.choices = {"cosine", "constant", "wsd"}});
  s.add("warmup_tokens", &c.warmup_tokens, "linear warm-up from 0",
        {.unit = "tokens", .min = 0, .max = kMaxTokens});
  s.add("min_lr_ratio", &c.min_lr_ratio, "learning rate at the end / peak", {.min = 0, .max = 1});
  s.add("decay_tokens", &c.decay_tokens, "wsd: length of the decay at the end",
        {.unit = "tokens", .min = 0, .max = kMaxTokens});
}

static void describe(Schema& s, EvalConfig& c) {
  s.add("interval_tokens", &c.interval_tokens, "between evaluations; 0: only at the end",
        {.unit = "tokens", .min = 0, .max = kMaxTokens, .safe = true});
  s.add("max_tokens", &c.max_tokens,
        "targets of an evaluation inside training; 0: the whole validation set",
        {.unit = "tokens", .min = 0, .max = kMaxTokens});
  s.add("lengths", &c.lengths, "context lengths; empty: data.seq_len",
        {.unit = "tokens", .min = 1, .max = 1 << 30});
}

static void describe(Schema& s, CheckpointConfig& c) {
  s.add("interval_tokens", &c.interval_tokens, "between checkpoints; 0: only at the end",
        {.unit = "tokens", .min = 0, .max = kMaxTokens, .safe = true});
  s.add("keep_last", &c.keep_last, "newest checkpoints kept; 2 because the newest may be damaged",
        {.min = 2, .max = 1e6, .safe = true});
  s.add("keep_every_tokens", &c.keep_every_tokens,
        "checkpoints this far apart are kept for good; 0: none",
        {.unit = "tokens", .min = 0, .max = kMaxTokens, .safe = true});
  s.add("on_error", &c.on_error, "if a checkpoint cannot be written: stop (exit 4) or train on",
        {.choices = {"stop", "continue"}, .safe = true});
}

static void describe(Schema& s, LogConfig& c) {
  s.add("interval_steps", &c.interval_steps, "between console and metrics lines",
        {.unit = "steps", .min = 1, .max = 1e9, .safe = true});
  s.add("csv", &c.csv, "write metrics/train.csv beside train.jsonl", {.safe = true});
  s.add("probe_interval_steps", &c.probe_interval_steps,
        "between looks inside the mixers (write gain, decay, state, ...: metrics/probes.jsonl); "
        "0: off. The losses do not depend on it",
        {.unit = "steps", .min = 0, .max = 1e9, .safe = true});
}

static void describe(Schema& s, DeviceConfig& c) {
  s.add("backend", &c.backend, "where to compute; auto: a GPU if there is one, or the cpu",
        {.choices = {"auto", "cpu", "cuda"}});
  s.add("dtype", &c.dtype,
        "number type of activations and matrix products; auto: bf16 on a GPU, f32 elsewhere",
        {.choices = {"auto", "bf16", "f32"}});
  s.add("deterministic", &c.deterministic,
        "strict: sums of gradients in a fixed tree, so that 1, 2, 4, ... CPU ranks give the same "
        "bits; costs memory for one more gradient each time the micro-batches of a rank double",
        {.choices = {"default", "strict"}});
  s.add("threads", &c.threads, "CPU threads; 0: one a core. The results do not depend on it",
        {.min = 0, .max = 4096, .safe = true});
}

static void describe(Schema& s, DistConfig& c) {
  s.add("init_timeout_s", &c.init_timeout_s,
        "how long ranks wait until all have arrived and read their data; then exit 6",
        {.unit = "seconds", .min = 1, .max = 1e6, .safe = true});
  s.add("step_timeout_s", &c.step_timeout_s,
        "how long ranks wait for one that does not come along; longer than a step takes",
        {.unit = "seconds", .min = 1, .max = 1e6, .safe = true});
  s.add("save_timeout_s", &c.save_timeout_s, "how long they wait while rank 0 writes a checkpoint",
        {.unit = "seconds", .min = 1, .max = 1e6, .safe = true});
}

static void describe(Schema& s, NonfiniteConfig& c) {
  s.add("policy", &c.policy, "a loss or gradient that is not finite: skip the update, or stop",
        {.choices = {"skip", "stop"}});
  s.add("max_consecutive", &c.max_consecutive, "skipped updates in a row before exit 5",
        {.unit = "steps", .min = 0, .max = 1e9, .safe = true});
  s.add("max_total", &c.max_total, "skipped updates in all before exit 5",
        {.unit = "steps", .min = 0, .max = 1e9, .safe = true});
}

static void describe(Schema& s, GuardConfig& c) {
  s.section("nonfinite", "losses and gradients that are not finite", c.nonfinite);
}

static void describe(Schema& s, TokenizerConfig& c) {
  s.add("path", &c.path, "SentencePiece model to use; empty: train one", {.path = true});
  s.add("vocab_size", &c.vocab_size, "size N of the model to train",
        {.unit = "tokens", .min = 260, .max = kMaxSize});
  s.add("character_coverage", &c.character_coverage,
        "share of the characters that get a piece; the rest become bytes",
        {.min = 0, .max = 1, .above_min = true});
  s.add("sample_bytes", &c.sample_bytes, "text the training sees",
        {.unit = "bytes", .min = 1, .max = 1e12});
  s.add("seed", &c.seed, "seed of the training");
}

Schema schema_of(Config& config) {
  Schema s;
  s.section("run", "the run and where it lives", config.run);
  s.section("model", "the model", config.model);
  s.section("data", "token shards and how they are read", config.data);
  s.section("train", "length and batch", config.train);
  s.section("optim", "the optimizer", config.optim);
  s.section("schedule", "the learning rate over time", config.schedule);
  s.section("eval", "evaluation inside training", config.eval);
  s.section("checkpoint", "checkpoints", config.checkpoint);
  s.section("log", "console and metrics", config.log);
  s.section("device", "hardware", config.device);
  s.section("dist", "runs of several ranks", config.dist);
  s.section("guard", "when to give up", config.guard);
  return s;
}

Schema schema_of(PrepareConfig& c) {
  Schema s;
  s.add("inputs", &c.inputs, "files and folders of .txt and .jsonl, plain, .gz or .zst",
        {.path = true, .required = true});
  s.add("output", &c.output, "train/, val/ and tokenizer.model are written below it",
        {.path = true, .required = true});
  s.section("tokenizer", "the tokenizer to use or to train", c.tokenizer);
  s.add("val_fraction", &c.val_fraction, "share of the documents kept for validation, by hash",
        {.min = 0, .max = 1, .below_max = true});
  s.add("val_inputs", &c.val_inputs, "used whole as validation, instead of val_fraction",
        {.path = true});
  s.add("max_val_documents", &c.max_val_documents, "the first so many of val_inputs; 0: all",
        {.unit = "documents", .min = 0, .max = 1e15});
  s.add("add_bos", &c.add_bos, "documents begin with the begin-of-text token");
  s.add("shard_tokens", &c.shard_tokens, "a shard ends with the document that reaches this",
        {.unit = "tokens", .min = 1, .max = kMaxTokens});
  s.add("text_field", &c.text_field, "field of .jsonl objects that holds the text",
        {.required = true});
  s.add("bad_documents", &c.bad_documents, "documents that cannot be read: skip and count, or stop",
        {.choices = {"skip", "stop"}});
  s.add("threads", &c.threads, "CPU threads; 0: one a core. The results do not depend on it",
        {.min = 0, .max = 4096, .safe = true});
  return s;
}

Schema schema_of(BenchConfig& c) {
  Schema s;
  s.section("model", "the model", c.model);
  s.add("batch", &c.batch, "samples B of a pass", {.unit = "samples", .min = 1, .max = 1 << 20});
  s.add("seq_len", &c.seq_len, "length T of a sample",
        {.unit = "tokens", .min = 1, .max = kMaxSize});
  s.add("repeats", &c.repeats, "timed runs of each entry, after one that is not timed",
        {.min = 1, .max = 1e6});
  s.section("device", "where to compute", c.device);
  s.add("ops", &c.ops, "ops to time (kernels/ops.h); empty: all", {.words = Words::identifier});
  s.add("whole_step", &c.whole_step, "also time forward, backward and update of the whole model");
  return s;
}

Schema schema_of(SweepConfig& c) {
  Schema s;
  s.add("base", &c.base, "training config that all runs share, relative to this file",
        {.required = true});
  s.add("name", &c.name, "name of the sweep", {.words = Words::file_name, .required = true});
  s.add("dir", &c.dir, "the run directories lie below it; {name} is replaced", {.required = true});
  s.add("baseline", &c.baseline, "variant that the others are compared with; empty: the first");
  s.add("references", &c.references,
        "CSV of published differences for the report, relative to this file");
  return s;
}

}  // namespace kla
