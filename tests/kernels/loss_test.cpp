// embedding and lm_head_loss: finite differences of the reference, every device against it, tokens
// that repeat, targets that are none, logits of any size.
#include <gtest/gtest.h>

#include "kernels/ops.h"
#include "tests/support/gradients.h"

namespace kla::testing {
namespace {

// table [N,D], dx [M,D], tokens [M].
void run_embedding(Lab& lab, const Inputs& in, int64_t M, int64_t N, int64_t D) {
  const View tokens = lab.typed(DType::i32, in.at("tokens"), {M});
  const EmbeddingForward forward{lab.acc({M, D}), tokens, lab.compute(in.at("table"), {N, D})};
  lab(ops::embedding_forward, forward);
  lab.keep("x", forward.x);
  const EmbeddingBackward backward{lab.accumulator({N, D}), lab.acc(in.at("dx"), {M, D}), tokens};
  lab(ops::embedding_backward, backward);
  lab.keep("d.table", backward.dtable);
}

Inputs draw_embedding(int64_t M, int64_t N, int64_t D) {
  return {{"tokens", integers("tokens", M, 0, N)},
          {"table", uniform("table", N * D)},
          {"dx", uniform("dx", M * D)}};
}

TEST(Embedding, FiniteDifferences) {
  Inputs in = draw_embedding(9, 5, 3);
  expect_program_gradients(
      in, [&](Lab& lab) { run_embedding(lab, in, 9, 5, 3); },
      [&](const Results& r) { return dot(r.at("x"), in["dx"]); }, {"table"}, "embedding");
}

TEST(Embedding, Contract) {
  for (const auto& [M, N, D] : {std::array<int64_t, 3>{0, 4, 4},
                                {1, 1, 1},
                                {200, 3, 17},
                                {130, 1000, 64},
                                {1000, 50, 33},
                                {3, 70, 1536}}) {
    const Inputs in = draw_embedding(M, N, D);
    expect_contract([&](Lab& lab) { run_embedding(lab, in, M, N, D); },
                    std::to_string(M) + " tokens of " + std::to_string(N));
  }
}

// Enough tokens that sorting them takes several tiles on a GPU, few enough rows that most repeat.
TEST(Embedding, ManyTokens) {
  const Inputs in = draw_embedding(5000, 900, 8);
  expect_contract([&](Lab& lab) { run_embedding(lab, in, 5000, 900, 8); }, "5000 tokens of 900");
}

// A GPU cannot refuse a token outside the vocabulary: its row is NaN, and no gradient is written.
TEST(Embedding, UnknownTokensShowOnAGpu) {
  Inputs in = draw_embedding(40, 9, 8);
  in["tokens"][3] = 9;
  in["tokens"][5] = -1;
  Inputs known = in;
  for (size_t m : {3u, 5u}) {
    known["tokens"][m] = 0;
    std::fill_n(known["dx"].begin() + static_cast<std::ptrdiff_t>(m * 8), 8, 0.0);
  }
  for (Device device : devices_under_test()) {
    if (!is_gpu(device)) continue;
    const Results r = execute(device, [&](Lab& lab) { run_embedding(lab, in, 40, 9, 8); });
    const Results k = execute(device, [&](Lab& lab) { run_embedding(lab, known, 40, 9, 8); });
    EXPECT_EQ(r.at("d.table"), k.at("d.table"));
    for (size_t i = 0; i < r.at("x").size(); ++i)
      EXPECT_EQ(std::isnan(r.at("x")[i]), i / 8 == 3 || i / 8 == 5) << i;
  }
}

struct Head {
  int64_t M, N, D;
  bool gradients = true;
  double grad_scale = 0.37;
};

// x [M,D], w [N,D], targets [M].
void run_head(Lab& lab, const Inputs& in, const Head& h) {
  LmHeadLoss loss;
  loss.losses = lab.acc({h.M});
  loss.x = lab.compute(in.at("x"), {h.M, h.D});
  loss.w = lab.compute(in.at("w"), {h.N, h.D});
  loss.targets = lab.typed(DType::i32, in.at("targets"), {h.M});
  if (h.gradients) {
    loss.dx = lab.compute({h.M, h.D});
    loss.dw = lab.accumulator({h.N, h.D});
    loss.grad_scale = h.grad_scale;
  }
  lab(ops::lm_head_loss, loss);
  lab.keep("losses", loss.losses);
  if (!h.gradients) return;
  lab.keep("d.x", loss.dx);
  lab.keep("d.w", loss.dw);
}

Inputs draw_head(const Head& h, double size = 1) {
  return {{"x", uniform("x", h.M * h.D, -size, size)},
          {"w", uniform("w", h.N * h.D)},
          {"targets", integers("targets", h.M, -1, h.N)}};
}

TEST(LmHeadLoss, FiniteDifferences) {
  const Head h{6, 9, 4};
  Inputs in = draw_head(h);
  in["targets"][2] = -1;
  expect_program_gradients(
      in, [&](Lab& lab) { run_head(lab, in, h); },
      [&](const Results& r) {
        double sum = 0;
        for (double x : r.at("losses")) sum += x;
        return h.grad_scale * sum;
      },
      {"w"}, "lm_head_loss");
}

TEST(LmHeadLoss, IsTheLogSumExp) {
  const Head h{20, 11, 5};
  const Inputs in = draw_head(h, 3);
  const Results r = execute(Device::reference, [&](Lab& lab) { run_head(lab, in, h); });
  for (int64_t m = 0; m < h.M; ++m) {
    const auto logit = [&](int64_t n) {
      double sum = 0;
      for (int64_t d = 0; d < h.D; ++d)
        sum += in.at("x")[static_cast<size_t>(m * h.D + d)] *
               in.at("w")[static_cast<size_t>(n * h.D + d)];
      return sum;
    };
    double total = 0;
    for (int64_t n = 0; n < h.N; ++n) total += std::exp(logit(n));
    const auto target = static_cast<int64_t>(in.at("targets")[static_cast<size_t>(m)]);
    const double expected = target < 0 ? 0 : std::log(total) - logit(target);
    EXPECT_NEAR(r.at("losses")[static_cast<size_t>(m)], expected, 1e-12);
  }
}

TEST(LmHeadLoss, Contract) {
  for (const auto& [M, N, D] : {std::array<int64_t, 3>{0, 5, 4},
                                {1, 1, 1},
                                {3, 7, 5},
                                {130, 100, 24},
                                {300, 1003, 33},
                                {1100, 65, 16}}) {
    const Head h{M, N, D};
    const Inputs in = draw_head(h);
    expect_contract([&](Lab& lab) { run_head(lab, in, h); },
                    std::to_string(M) + " tokens, vocabulary " + std::to_string(N));
  }
}

// The largest logit is near 1000: exponentials overflow unless it is taken out.
TEST(LmHeadLoss, LargeLogits) {
  const Head h{70, 90, 40};
  const Inputs in = draw_head(h, 100);
  expect_contract([&](Lab& lab) { run_head(lab, in, h); }, "large logits");
}

TEST(LmHeadLoss, NothingToLearn) {
  const Head h{70, 30, 8};
  Inputs in = draw_head(h);
  std::fill(in["targets"].begin(), in["targets"].end(), -1.0);
  for (Device device : all_devices()) {
    const Results r = execute(device, [&](Lab& lab) { run_head(lab, in, h); });
    for (const char* name : {"losses", "d.x"})
      for (double x : r.at(name)) EXPECT_EQ(x, 0) << name << " on " << name_of(device);
    for (double x : r.at("d.w")) EXPECT_EQ(x, Lab::kInitialGradient) << name_of(device);
  }
}

TEST(LmHeadLoss, SameLossesWithoutGradients) {
  const Head h{300, 70, 24}, alone{300, 70, 24, false};
  const Inputs in = draw_head(h);
  for (Device device : all_devices())
    for (DType compute : compute_types(device)) {
      const auto losses = [&](const Head& head) {
        return execute(
                   device, [&](Lab& lab) { run_head(lab, in, head); }, 1, compute)
            .at("losses");
      };
      EXPECT_EQ(losses(alone), losses(h)) << name_of(device) << ' ' << name_of(compute);
    }
}

// More tokens than any device takes at once.
TEST(LmHeadLoss, SeveralChunks) {
  const Head h{8300, 5, 3};
  const Inputs in = draw_head(h);
  expect_contract([&](Lab& lab) { run_head(lab, in, h); }, "8300 tokens");
}

}  // namespace
}  // namespace kla::testing
