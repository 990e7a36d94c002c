#include "config/suggest.h"

#include <algorithm>
#include <array>
#include <utility>

namespace kla {
namespace {

constexpr size_t kLongestKey = 64;  // longer words are no misspelt key, and cost time

// What other projects call our keys.
constexpr auto kSynonyms = std::to_array<std::pair<std::string_view, std::string_view>>({
    {"learning_rate", "optim.lr"},
    {"max_lr", "optim.lr"},
    {"min_lr", "schedule.min_lr_ratio"},
    {"optimizer", "optim"},
    {"beta1", "optim.betas"},
    {"beta2", "optim.betas"},
    {"wd", "optim.weight_decay"},
    {"scheduler", "schedule"},
    {"lr_scheduler", "schedule"},
    {"warmup", "schedule.warmup_tokens"},
    {"warmup_steps", "schedule.warmup_tokens"},
    {"warmup_iters", "schedule.warmup_tokens"},
    {"n_layer", "model.num_hidden_layers"},
    {"n_layers", "model.num_hidden_layers"},
    {"num_layers", "model.num_hidden_layers"},
    {"n_head", "model.num_heads"},
    {"n_heads", "model.num_heads"},
    {"num_attention_heads", "model.num_heads"},
    {"n_embd", "model.hidden_size"},
    {"d_model", "model.hidden_size"},
    {"dim", "model.hidden_size"},
    {"head_dim", "model.key_head_dim"},
    {"head_k_dim", "model.key_head_dim"},
    {"head_v_dim", "model.value_head_dim"},
    {"expand_k", "model.key_head_dim"},
    {"expand_v", "model.value_head_dim"},
    {"ffn_dim", "model.intermediate_size"},
    {"d_ff", "model.intermediate_size"},
    {"type", "model.mixer"},
    {"qk_norm", "model.step_size.rule"},
    {"rule", "model.step_size.rule"},
    {"gate_mode", "model.step_size.gate"},
    {"seq_factor_mode", "model.step_size.seq_factor"},
    {"use_mamba_gate", "model.decay_gate"},
    {"batch_size", "train.micro_batch_size"},
    {"batch_size", "batch"},
    {"micro_batch", "train.micro_batch_size"},
    {"global_batch_size", "train.global_batch_tokens"},
    {"gradient_accumulation_steps", "train.global_batch_tokens"},
    {"block_size", "data.seq_len"},
    {"block_size", "seq_len"},
    {"context_length", "data.seq_len"},
    {"context_length", "seq_len"},
    {"sequence_length", "data.seq_len"},
    {"max_seq_len", "data.seq_len"},
    {"max_iters", "train.max_tokens"},
    {"max_steps", "train.max_tokens"},
    {"num_steps", "train.max_tokens"},
    {"clip_grad", "train.grad_clip"},
    {"max_grad_norm", "train.grad_clip"},
    {"gradient_clipping", "train.grad_clip"},
    {"eval_interval", "eval.interval_tokens"},
    {"save_interval", "checkpoint.interval_tokens"},
    {"log_interval", "log.interval_steps"},
    {"output_dir", "run.dir"},
    {"out_dir", "run.dir"},
    {"out_dir", "output"},
    {"output_dir", "output"},
    {"num_threads", "device.threads"},
    {"num_threads", "threads"},
    {"num_workers", "threads"},
    {"device_type", "device.backend"},
    {"corpus", "inputs"},
});

struct Candidate {
  size_t score;
  std::string path;
};

size_t reach(std::string_view word, size_t shortest) {
  return std::max(shortest, word.size() / 3);
}

// "warmup" for "warmup_tokens", "tokens" for "max_tokens".
bool part_of(std::string_view part, std::string_view whole) {
  if (part.size() < 3 || part.size() >= whole.size()) return false;
  const size_t cut = whole.size() - part.size();
  return (whole.substr(0, part.size()) == part && whole[part.size()] == '_') ||
         (whole.substr(cut) == part && whole[cut - 1] == '_');
}

std::vector<std::string> best_of(const std::vector<Candidate>& candidates) {
  std::vector<std::string> best;
  size_t score = std::string::npos;
  for (const Candidate& candidate : candidates) {
    if (candidate.score < score) best.clear();
    score = std::min(score, candidate.score);
    if (candidate.score == score &&
        std::find(best.begin(), best.end(), candidate.path) == best.end())
      best.push_back(candidate.path);
  }
  if (best.size() > 3) best.resize(3);
  return best;
}

}  // namespace

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before(b.size() + 1), last(b.size() + 1), now(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    now[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replace = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      now[j] = std::min({replace, last[j] + 1, now[j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        now[j] = std::min(now[j], before[j - 2] + 1);
    }
    before = std::exchange(last, now);
  }
  return last[b.size()];
}

std::vector<std::string> nearest(std::string_view word,
                                 const std::vector<std::string>& candidates) {
  std::vector<Candidate> near;
  if (word.size() > kLongestKey) return {};
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(word, candidate);
    if (distance < word.size() && distance <= reach(word, 2)) near.push_back({distance, candidate});
  }
  return best_of(near);
}

std::vector<std::string> suggest_keys(const Schema& schema, const std::string& section,
                                      const std::string& name) {
  if (name.size() > kLongestKey) return {};
  std::vector<Candidate> candidates;
  for (const auto& [word, path] : kSynonyms) {
    const std::string target(path);
    if (!schema.find(target) && !schema.is_section(target)) continue;
    if (word == name) return {target};
    const size_t distance = edit_distance(name, word);
    if (distance <= reach(name, 1)) candidates.push_back({distance + 1, target});
  }
  for (const std::string& sibling : schema.names_below(section)) {
    const size_t distance = part_of(name, sibling) ? 1 : edit_distance(name, sibling);
    if (distance < std::max<size_t>(sibling.size(), 2) && distance <= reach(name, 2))
      candidates.push_back({distance, Schema::join(section, sibling)});
  }
  // The same name in another section, one edit further away.
  for (const Field& field : schema.fields()) {
    const std::string leaf = field.path.substr(field.path.rfind('.') + 1);
    const size_t distance = edit_distance(name, leaf);
    if (field.path == name || distance <= reach(name, 1))
      candidates.push_back({field.path == name ? 0 : distance + 1, field.path});
  }
  return best_of(candidates);
}

std::string did_you_mean(const std::vector<std::string>& candidates) {
  std::string text;
  for (const std::string& candidate : candidates)
    text += (text.empty() ? "did you mean '" : "' or '") + candidate;
  return text.empty() ? text : text + "'?";
}

}  // namespace kla
