// matmul and its two backward products: finite differences of the reference, every device against
// it, column views, accumulation into what is there.
#include <gtest/gtest.h>

#include "kernels/ops.h"
#include "tests/support/gradients.h"

namespace kla::testing {
namespace {

struct Product {
  int64_t M, N, K;
  bool accumulate = false;
  bool acc_output = false;  // y in the accumulation type: the residual stream
};

// x [M,K], w [N,K], y [M,N] (added to under accumulate), dy [M,N], dx [M,K] (likewise).
void run_matmul(Lab& lab, const Inputs& in, const Product& p) {
  const View x = lab.columns(in.at("x"), {p.M, p.K});
  const View w = lab.compute(in.at("w"), {p.N, p.K});
  View y = p.acc_output ? lab.acc({p.M, p.N}) : lab.columns({p.M, p.N});
  View dx = lab.compute({p.M, p.K});
  if (p.accumulate) {
    y = p.acc_output ? lab.acc(in.at("y"), {p.M, p.N}) : lab.columns(in.at("y"), {p.M, p.N});
    dx = lab.compute(in.at("dx"), {p.M, p.K});
  }
  lab(ops::matmul_forward, {y, x, w, p.accumulate});
  lab.keep("y", y);
  const View dy = lab.columns(in.at("dy"), {p.M, p.N});
  lab(ops::matmul_backward_input, {dx, dy, w, p.accumulate});
  lab.keep("d.x", dx);
  const View dw = lab.accumulator({p.N, p.K});
  lab(ops::matmul_backward_weight, {dw, dy, x});
  lab.keep("d.w", dw);
}

Inputs draw_matmul(const Product& p) {
  return {{"x", uniform("x", p.M * p.K)},
          {"w", uniform("w", p.N * p.K)},
          {"y", uniform("y", p.M * p.N)},
          {"dy", uniform("dy", p.M * p.N)},
          {"dx", uniform("dx", p.M * p.K)}};
}

TEST(Matmul, FiniteDifferences) {
  const Product p{4, 3, 5};
  Inputs in = draw_matmul(p);
  expect_gradients(
      in, [&](Lab& lab) { run_matmul(lab, in, p); },
      [&](const Results& r) { return dot(r.at("y"), in["dy"]); }, {"w"}, "matmul");
}

TEST(Matmul, AccumulateAdds) {
  const Product plain{6, 5, 7}, added{6, 5, 7, true}, residual{6, 5, 7, true, true};
  const Inputs in = draw_matmul(plain);
  const Results fresh = execute(Device::reference, [&](Lab& lab) { run_matmul(lab, in, plain); });
  for (const Product& p : {added, residual}) {
    const Results sum = execute(Device::reference, [&](Lab& lab) { run_matmul(lab, in, p); });
    for (const auto& [name, before] : {std::pair{"y", "y"}, {"d.x", "dx"}})
      for (size_t i = 0; i < sum.at(name).size(); ++i)
        EXPECT_NEAR(sum.at(name)[i], fresh.at(name)[i] + in.at(before)[i], 1e-13) << name;
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
    for (bool accumulate : {false, true})
      for (bool acc_output : {false, true}) {
        const Product p{M, N, K, accumulate, acc_output};
        const Inputs in = draw_matmul(p);
        expect_contract([&](Lab& lab) { run_matmul(lab, in, p); },
                        "M " + std::to_string(M) + " N " + std::to_string(N) + " K " +
                            std::to_string(K) + (accumulate ? ", accumulate" : ""));
      }
}

}  // namespace
}  // namespace kla::testing
