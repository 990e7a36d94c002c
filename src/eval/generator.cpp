#include "eval/generator.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/device.h"
#include "core/error.h"

namespace kla {

int32_t sample_token(const float* logits, int64_t N, const Sampling& sampling,
                     const RandomStream& random, uint64_t index) {
  if (sampling.temperature == 0)
    return static_cast<int32_t>(std::max_element(logits, logits + N) - logits);

  std::vector<int32_t> ids(static_cast<size_t>(N));
  std::iota(ids.begin(), ids.end(), 0);
  const int64_t kept = sampling.top_k > 0 ? std::min(sampling.top_k, N) : N;
  auto more_likely = [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  std::partial_sort(ids.begin(), ids.begin() + kept, ids.end(), more_likely);
  ids.resize(static_cast<size_t>(kept));

  std::vector<double> weights;
  double sum = 0;
  for (int32_t id : ids) {
    weights.push_back(
        std::exp(static_cast<double>(logits[id] - logits[ids[0]]) / sampling.temperature));
    sum += weights.back();
  }
  if (sampling.top_p < 1) {  // the first tokens whose probabilities reach top_p
    double reached = 0;
    size_t n = 0;
    while (n < weights.size() && reached < sampling.top_p * sum) reached += weights[n++];
    weights.resize(std::max<size_t>(n, 1));
    sum = std::max(reached, weights[0]);
  }
  double at = random.uniform(index) * sum;
  for (size_t i = 0; i < weights.size(); ++i) {
    at -= weights[i];
    if (at < 0) return ids[i];
  }
  return ids[weights.size() - 1];
}

Generator::Generator(Context& context, Arena& arena, LanguageModel& model, const Weights& weights)
    : context_(context),
      model_(model),
      weights_(weights),
      state_(model.allocate_state(context, arena, 1)),
      tokens_(arena.allocate(DType::i32, {kPrefill})),
      logits_(arena.allocate(context.accumulate, {1, model.vocab_size()})) {
  restart();
}

void Generator::plan() {
  model_.logits_from(context_, weights_, {1, kPrefill, {}}, tokens_, state_, logits_);
}

void Generator::restart() {
  LanguageModel::clear(context_, state_);
  position_ = 0;
}

void Generator::read(const std::vector<int32_t>& tokens) {
  const auto count = static_cast<int64_t>(tokens.size());
  for (int64_t first = 0; first < count; first += kPrefill)
    read(tokens.data() + first, std::min(kPrefill, count - first));
}

void Generator::read(const int32_t* tokens, int64_t count) {
  const View tokens_now(tokens_.data, DType::i32, {count});
  upload(context_, tokens_now, tokens);
  const auto forward = [this, tokens_now, count] {
    model_.logits_from(context_, weights_, {1, count, {}}, tokens_now, state_, logits_);
  };
  if (count > 1) {
    forward();
  } else if (one_token_) {
    one_token_->replay();
  } else {
    one_token_ = services_of(context_.device).record(forward);
  }
  host_logits_ = downloaded<float>(context_, logits_);
  position_ += count;
}

int32_t Generator::next(const Sampling& sampling) {
  KLA_CHECK(position_ > 0, "next() needs a token to continue from");
  const RandomStream random(sampling.seed, "generate");
  const int64_t N =
      sampling.vocabulary > 0 ? std::min(sampling.vocabulary, logits_.cols()) : logits_.cols();
  const int32_t token =
      sample_token(logits(), N, sampling, random, static_cast<uint64_t>(position_));
  read(&token, 1);
  return token;
}

}  // namespace kla
