// Every setting of a run: a struct field with its default, unit and meaning. The schema
// (schema.cpp) lists the same fields once more with path, range and choices and drives parsing,
// `kla config`, the frozen file and the reference; a test holds the two together. Durations are in
// tokens. See configs/ for examples.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace kla {

struct RunConfig {
  std::string name = "run";         // [A-Za-z0-9._-], no leading dot
  std::string dir = "runs/{name}";  // run directory; {name} and {seed} are replaced
  uint64_t seed = 42;               // initial values; the data order has its own, data.shuffle_seed
  std::string resume = "auto";      // auto: continue if there is a checkpoint | never | must
  std::vector<std::string> tags;
};

struct StepSizeConfig {
  std::string rule = "kla";         // kernels/step_rules.h: kla, gdn, longhorn, ...
  std::string seq_factor = "none";  // none | inv_t | inv_sqrt_t | inv_log_t, multiplies beta
  std::string gate = "dual";        // dual: own decay gate | single: g = ln(1 - eta)
  double eps = 1e-6;                // added to the squared key norm
  double learned_scalar_init = 1;   // lambda = softplus(theta) at the start, rules that learn one
};

struct ModelConfig {
  std::string mixer = "gated_delta";
  int64_t hidden_size = 256;         // D
  int64_t num_hidden_layers = 2;     // L
  int64_t num_heads = 4;             // H
  int64_t key_head_dim = 48;         // K
  int64_t value_head_dim = 96;       // V
  int64_t conv_size = 4;             // short convolution; only 4 exists
  int64_t intermediate_size = 1024;  // F, SwiGLU width
  double norm_eps = 1e-5;
  int64_t vocab_size = 32000;        // N; rows of the embedding, a multiple of 64 is fastest
  bool tie_word_embeddings = true;   // only true exists
  bool beta_bias = true;             // bias of the step-size projection (the study: yes; fla: no)
  std::string decay_gate = "mamba";  // mamba | logsigmoid16
  StepSizeConfig step_size;
};

struct DataConfig {
  std::string train;  // directory written by `kla data prepare`
  std::string val;
  int64_t seq_len = 512;         // T, tokens a sample
  uint64_t shuffle_seed = 1234;  // sample order; independent of run.seed
  int64_t epochs = 0;  // passes allowed over the data; 0: as many as train.max_tokens needs
  bool reset_at_documents =
      false;  // restart state, convolution and position at document boundaries
};

struct TrainConfig {
  int64_t max_tokens = 0;  // target tokens to train on
  int64_t global_batch_tokens =
      0;  // tokens an optimizer step; a multiple of seq_len * micro_batch_size
  int64_t micro_batch_size = 1;    // B, samples a forward pass
  double grad_clip = 1;            // global L2 norm; 0: off
  std::string recompute = "none";  // none | mixer | block: saves memory, changes no bit
};

struct OptimConfig {
  std::string name = "adamw";
  double lr = 1e-3;  // peak
  std::vector<double> betas = {0.9, 0.95};
  double eps = 1e-8;
  double weight_decay = 0.1;
  std::string decay = "all";  // all parameters (the study) | matrices
};

struct ScheduleConfig {
  std::string name = "cosine";  // cosine | constant | wsd (warm-up, stable, linear decay)
  int64_t warmup_tokens = 0;    // linear from 0
  double min_lr_ratio = 0.1;    // lr at the end / peak lr
  int64_t decay_tokens = 0;     // wsd: length of the decay at the end
};

struct EvalConfig {
  int64_t interval_tokens = 0;  // 0: only at the end
  int64_t max_tokens = 0;  // targets per evaluation inside training; 0: the whole validation set
  std::vector<int64_t> lengths;  // context lengths; empty: data.seq_len
};

struct CheckpointConfig {
  int64_t interval_tokens = 0;    // 0: only at the end
  int64_t keep_last = 2;          // at least 2: the newest may be the damaged one
  int64_t keep_every_tokens = 0;  // 0: none kept for good
  std::string on_error = "stop";  // stop (exit 4) | continue: train on without this checkpoint
};

struct LogConfig {
  int64_t interval_steps = 10;
  bool csv = true;                   // metrics/train.csv beside train.jsonl
  int64_t probe_interval_steps = 0;  // metrics/probes.jsonl: numbers from inside the mixers; 0: off
};

struct DeviceConfig {
  std::string backend = "auto";  // auto: a GPU if there is one | cpu | cuda | simt
  std::string dtype = "auto";    // of activations and matrix products: bf16 (auto on GPUs) | f32
  std::string deterministic = "default";  // strict: the same bits on 1, 2, 4, ... CPU ranks
  int64_t threads = 0;                    // 0: one a core; the results do not depend on it
};

// Runs of several ranks: how long the others wait for one, seconds. Then exit 6.
struct DistConfig {
  int64_t init_timeout_s = 300;  // until all have arrived and read their data
  int64_t step_timeout_s = 100;  // in a step: longer than the slowest takes for its share
  int64_t save_timeout_s = 420;  // while rank 0 writes a checkpoint
};

struct NonfiniteConfig {
  std::string policy = "skip";  // skip the update | stop
  int64_t max_consecutive = 5;  // then exit 5
  int64_t max_total = 100;
};
struct GuardConfig {
  NonfiniteConfig nonfinite;
};

struct Config {
  RunConfig run;
  ModelConfig model;
  DataConfig data;
  TrainConfig train;
  OptimConfig optim;
  ScheduleConfig schedule;
  EvalConfig eval;
  CheckpointConfig checkpoint;
  LogConfig log;
  DeviceConfig device;
  DistConfig dist;
  GuardConfig guard;
};

}  // namespace kla
