// rms_norm, gated_rms_norm and swiglu: finite differences of the reference, every device against
// it, memory shared where ops.h allows it.
#include <gtest/gtest.h>

#include "kernels/ops.h"
#include "tests/support/gradients.h"

namespace kla::testing {
namespace {

std::string describe(int64_t rows, int64_t width) {
  return std::to_string(rows) + " rows of " + std::to_string(width);
}

// x, w, dy, dresidual (may be absent).
void run_rms_norm(Lab& lab, const Inputs& in, int64_t M, int64_t D, bool in_place = false) {
  const View x = lab.acc(in.at("x"), {M, D}), w = lab.acc(in.at("w"), {D});
  const RmsNormForward forward{lab.compute({M, D}), lab.acc({M}), x, w, 1e-5};
  lab(ops::rms_norm_forward, forward);
  lab.keep("y", forward.y);
  lab.keep("rstd", forward.rstd);
  const View dresidual = in.contains("dresidual") ? lab.acc(in.at("dresidual"), {M, D}) : View();
  const RmsNormBackward backward{.dx = in_place ? dresidual : lab.acc({M, D}),
                                 .dx_copy = lab.columns({M, D}),
                                 .dw = lab.accumulator({D}),
                                 .dresidual = dresidual,
                                 .dy = lab.compute(in.at("dy"), {M, D}),
                                 .x = x,
                                 .w = w,
                                 .rstd = forward.rstd};
  lab(ops::rms_norm_backward, backward);
  lab.keep("d.x", backward.dx);
  lab.keep("copy of d.x", backward.dx_copy);
  lab.keep("d.w", backward.dw);
}

Inputs draw_rms_norm(int64_t M, int64_t D) {
  return {{"x", uniform("x", M * D, -2, 2)},
          {"w", uniform("w", D, 0.5, 1.5)},
          {"dy", uniform("dy", M * D)},
          {"dresidual", uniform("dresidual", M * D)}};
}

TEST(RmsNorm, FiniteDifferences) {
  Inputs in = draw_rms_norm(3, 7);
  for (size_t i = 0; i < 7; ++i) in["x"][i] *= 1e-3;  // eps is felt
  expect_program_gradients(
      in, [&](Lab& lab) { run_rms_norm(lab, in, 3, 7); },
      [&](const Results& r) { return dot(r.at("y"), in["dy"]) + dot(in["x"], in["dresidual"]); },
      {"w"}, "rms_norm");
}

TEST(RmsNorm, Contract) {
  for (const auto& [M, D] :
       {std::pair<int64_t, int64_t>{0, 8}, {1, 1}, {3, 5}, {130, 64}, {65, 1536}, {700, 33}}) {
    const Inputs in = draw_rms_norm(M, D);
    expect_contract([&](Lab& lab) { run_rms_norm(lab, in, M, D); }, describe(M, D));
  }
}

TEST(RmsNorm, RowsOfZerosAndOfAnySize) {
  Inputs in = draw_rms_norm(8, 40);
  for (size_t i = 0; i < 40; ++i) {
    in["x"][i] = 0;
    in["x"][40 + i] = to_f32(in["x"][40 + i] * 1e-12);
    in["x"][80 + i] = to_f32(in["x"][80 + i] * 1e12);
  }
  expect_contract([&](Lab& lab) { run_rms_norm(lab, in, 8, 40); }, "rows of any size");
}

TEST(RmsNorm, GradientInPlaceOfTheResidual) {
  const Inputs in = draw_rms_norm(70, 24);
  for (Device device : all_devices())
    expect_identical(execute(device, [&](Lab& lab) { run_rms_norm(lab, in, 70, 24, true); }),
                     execute(device, [&](Lab& lab) { run_rms_norm(lab, in, 70, 24); }),
                     name_of(device));
}

TEST(RmsNorm, TheCopyIsTheGradientRounded) {
  const Inputs in = draw_rms_norm(70, 24);
  for (Device device : all_devices())
    for (DType compute : compute_types(device)) {
      Results r = execute(
          device, [&](Lab& lab) { run_rms_norm(lab, in, 70, 24); }, 1, compute);
      if (compute == DType::bf16)
        for (double& x : r["d.x"]) x = to_double(from_double<bf16>(x));
      EXPECT_EQ(r.at("copy of d.x"), r.at("d.x")) << name_of(device) << ' ' << name_of(compute);
    }
}

TEST(RmsNorm, NoResidualIsAZeroOne) {
  Inputs zero = draw_rms_norm(70, 24), none = zero;
  std::fill(zero["dresidual"].begin(), zero["dresidual"].end(), 0.0);
  none.erase("dresidual");
  for (Device device : all_devices())
    expect_identical(execute(device, [&](Lab& lab) { run_rms_norm(lab, none, 70, 24); }),
                     execute(device, [&](Lab& lab) { run_rms_norm(lab, zero, 70, 24); }),
                     name_of(device));
}

// x, gate, w, dy.
void run_gated_norm(Lab& lab, const Inputs& in, int64_t M, int64_t H, int64_t V) {
  const View x = lab.compute(in.at("x"), {M, H * V});
  const View gate = lab.columns(in.at("gate"), {M, H * V});
  const View w = lab.acc(in.at("w"), {V});
  const GatedRmsNormForward forward{lab.compute({M, H * V}), lab.acc({M, H}), x, gate, w, 1e-5};
  lab(ops::gated_rms_norm_forward, forward);
  lab.keep("y", forward.y);
  lab.keep("rstd", forward.rstd);
  const GatedRmsNormBackward backward{.dx = lab.compute({M, H * V}),
                                      .dgate = lab.columns({M, H * V}),
                                      .dw = lab.accumulator({V}),
                                      .dy = lab.compute(in.at("dy"), {M, H * V}),
                                      .x = x,
                                      .gate = gate,
                                      .w = w,
                                      .rstd = forward.rstd};
  lab(ops::gated_rms_norm_backward, backward);
  lab.keep("d.x", backward.dx);
  lab.keep("d.gate", backward.dgate);
  lab.keep("d.w", backward.dw);
}

Inputs draw_gated_norm(int64_t M, int64_t H, int64_t V) {
  return {{"x", uniform("x", M * H * V, -2, 2)},
          {"gate", uniform("gate", M * H * V, -4, 4)},
          {"w", uniform("w", V, 0.5, 1.5)},
          {"dy", uniform("dy", M * H * V)}};
}

TEST(GatedRmsNorm, FiniteDifferences) {
  Inputs in = draw_gated_norm(3, 2, 5);
  for (size_t i = 0; i < 5; ++i) in["x"][i] *= 1e-3;
  expect_program_gradients(
      in, [&](Lab& lab) { run_gated_norm(lab, in, 3, 2, 5); },
      [&](const Results& r) { return dot(r.at("y"), in["dy"]); }, {"w"}, "gated_rms_norm");
}

TEST(GatedRmsNorm, Contract) {
  for (const auto& [M, H, V] : {std::array<int64_t, 3>{0, 2, 8},
                                {1, 1, 2},
                                {3, 3, 5},
                                {130, 4, 24},
                                {67, 12, 192},
                                {500, 2, 31}}) {
    Inputs in = draw_gated_norm(M, H, V);
    expect_contract([&](Lab& lab) { run_gated_norm(lab, in, M, H, V); }, describe(M, H * V));
    if (M < 3) continue;
    for (size_t i = 0; i < in["gate"].size(); i += 7) in["gate"][i] *= 50;  // silu saturates
    std::fill_n(in["x"].begin(), V, 0.0);
    expect_contract([&](Lab& lab) { run_gated_norm(lab, in, M, H, V); },
                    describe(M, H * V) + ", saturated gates");
  }
}

// gate, up, dy.
void run_swiglu(Lab& lab, const Inputs& in, int64_t M, int64_t F) {
  const View gate = lab.columns(in.at("gate"), {M, F}), up = lab.columns(in.at("up"), {M, F});
  const SwigluForward forward{lab.compute({M, F}), gate, up};
  lab(ops::swiglu_forward, forward);
  lab.keep("y", forward.y);
  const SwigluBackward backward{lab.columns({M, F}), lab.columns({M, F}),
                                lab.compute(in.at("dy"), {M, F}), gate, up};
  lab(ops::swiglu_backward, backward);
  lab.keep("d.gate", backward.dgate);
  lab.keep("d.up", backward.dup);
}

Inputs draw_swiglu(int64_t M, int64_t F, double range) {
  return {{"gate", uniform("gate", M * F, -range, range)},
          {"up", uniform("up", M * F, -2, 2)},
          {"dy", uniform("dy", M * F)}};
}

TEST(Swiglu, FiniteDifferences) {
  Inputs in = draw_swiglu(3, 7, 5);
  expect_program_gradients(
      in, [&](Lab& lab) { run_swiglu(lab, in, 3, 7); },
      [&](const Results& r) { return dot(r.at("y"), in["dy"]); }, {}, "swiglu");
}

TEST(Swiglu, Contract) {
  for (const auto& [M, F] :
       {std::pair<int64_t, int64_t>{0, 8}, {1, 3}, {3, 5}, {130, 64}, {65, 1000}, {700, 33}})
    for (double range : {4.0, 300.0}) {
      const Inputs in = draw_swiglu(M, F, range);
      expect_contract([&](Lab& lab) { run_swiglu(lab, in, M, F); }, describe(M, F));
    }
}

}  // namespace
}  // namespace kla::testing
