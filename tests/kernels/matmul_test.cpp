// matmul and its two backward products: finite differences of the reference, every device against
// it, column views, sums with what is there.
#include <gtest/gtest.h>

#include "kernels/ops.h"
#include "tests/support/gradients.h"

namespace kla::testing {
namespace {

enum class Residual { none, separate, in_place };

struct Product {
  int64_t M, N, K;
  Residual residual = Residual::none;
  bool acc_output = false;  // y and the residual in the accumulation type: the residual stream
};

// y = x w^T + residual: x [M,K], w [N,K], y and residual [M,N], dy [M,N], dx [M,K].
View forward(Lab& lab, const Inputs& in, const Product& p, const View& x, const View& w) {
  MatmulForward f;
  f.y = p.acc_output ? lab.acc({p.M, p.N}) : lab.columns({p.M, p.N});
  f.x = x;
  f.w = w;
  if (p.residual != Residual::none)
    f.residual = p.acc_output ? lab.acc(in.at("residual"), {p.M, p.N})
                              : lab.columns(in.at("residual"), {p.M, p.N});
  if (p.residual == Residual::in_place) f.y = f.residual;
  lab(ops::matmul_forward, f);
  return f.y;
}

void run_matmul(Lab& lab, const Inputs& in, const Product& p) {
  const View x = lab.columns(in.at("x"), {p.M, p.K}), w = lab.compute(in.at("w"), {p.N, p.K});
  lab.keep("y", forward(lab, in, p, x, w));
  const View dy = lab.columns(in.at("dy"), {p.M, p.N}), dx = lab.compute({p.M, p.K});
  lab(ops::matmul_backward_input, {dx, dy, w});
  lab.keep("d.x", dx);
  const View dw = lab.accumulator({p.N, p.K});
  lab(ops::matmul_backward_weight, {dw, dy, x});
  lab.keep("d.w", dw);
}

Inputs draw_matmul(const Product& p) {
  return {{"x", uniform("x", p.M * p.K)},
          {"w", uniform("w", p.N * p.K)},
          {"residual", uniform("residual", p.M * p.N)},
          {"dy", uniform("dy", p.M * p.N)}};
}

TEST(Matmul, FiniteDifferences) {
  const Product p{4, 3, 5};
  Inputs in = draw_matmul(p);
  expect_program_gradients(
      in, [&](Lab& lab) { run_matmul(lab, in, p); },
      [&](const Results& r) { return dot(r.at("y"), in["dy"]); }, {"w"}, "matmul");
}

TEST(Matmul, AddsToWhatIsThere) {
  const Product plain{6, 5, 7};
  const Inputs in = draw_matmul(plain);
  for (Device device : all_devices()) {
    const double tolerance = device == Device::reference ? 1e-13 : 1e-5;
    const auto run = [&](const Product& p) {
      return execute(device, [&](Lab& lab) { run_matmul(lab, in, p); });
    };
    const Results alone = run(plain);
    for (Residual residual : {Residual::separate, Residual::in_place})
      for (bool acc_output : {false, true}) {
        const Results sum = run({6, 5, 7, residual, acc_output});
        for (size_t i = 0; i < sum.at("y").size(); ++i)
          EXPECT_NEAR(sum.at("y")[i], alone.at("y")[i] + in.at("residual")[i], tolerance)
              << name_of(device);
      }
  }
}

TEST(Matmul, Contract) {
  for (const auto& [M, N, K] : {std::array<int64_t, 3>{0, 4, 4},
                                {1, 1, 1},
                                {1, 33, 65},
                                {3, 5, 7},
                                {64, 64, 64},
                                {130, 96, 48},
                                {257, 100, 70},
                                {1000, 31, 17},
                                {65, 500, 300}})
    for (const Product& p : {Product{M, N, K}, Product{M, N, K, Residual::separate, true},
                             Product{M, N, K, Residual::in_place}}) {
      const Inputs in = draw_matmul(p);
      expect_contract([&](Lab& lab) { run_matmul(lab, in, p); },
                      "M " + std::to_string(M) + " N " + std::to_string(N) + " K " +
                          std::to_string(K) + ", residual " +
                          std::to_string(static_cast<int>(p.residual)));
    }
}

}  // namespace
}  // namespace kla::testing
