// Text generation: the prompt goes through the chunkwise form, then one token at a time through the
// recurrence, with memory and time a token that do not depend on how much was written.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/device.h"
#include "core/philox.h"
#include "model/language_model.h"

namespace kla {

struct Sampling {
  double temperature = 1;  // 0: always the most likely token
  int64_t top_k = 0;       // keep the k most likely tokens; 0: all
  double top_p = 1;        // keep the smallest set of tokens with this probability
  uint64_t seed = 0;
  int64_t vocabulary = 0;  // ids the tokenizer has, the model may have more rows; 0: all
};

// Draws a token from logits[0..N). `index` is the place in the random stream. Ties go to the lower
// id.
int32_t sample_token(const float* logits, int64_t N, const Sampling& sampling,
                     const RandomStream& random, uint64_t index);

class Generator {
 public:
  static constexpr int64_t kPrefill = 1024;  // prompt tokens a forward pass

  // As Scorer: buffers and state from `arena`, forward passes in context.scratch; plan() for a dry
  // run.
  Generator(Context& context, Arena& arena, LanguageModel& model, const Weights& weights);
  Generator(const Generator&) = delete;
  Generator& operator=(const Generator&) = delete;
  void plan();

  void restart();  // back to the empty state
  void read(
      const std::vector<int32_t>& tokens);  // prefill; at least one token in all before next()
  int32_t next(const Sampling& sampling);   // samples a token and reads it
  const float* logits() const { return host_logits_.data(); }  // [N] after the last token read
  int64_t position() const { return position_; }               // tokens read

 private:
  void read(const int32_t* tokens, int64_t count);

  Context& context_;
  LanguageModel& model_;
  const Weights& weights_;
  RecurrentState state_;
  View tokens_;  // [kPrefill] i32
  View logits_;  // [1,N] acc
  std::vector<float> host_logits_;
  std::unique_ptr<Recording> one_token_;  // the forward pass of one token: one launch on a GPU
  int64_t position_ = 0;
};

}  // namespace kla
