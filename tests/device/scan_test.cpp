// The delta-rule kernels of the CUDA backend, on whatever device runs them here, against the
// reference in double on the same rounded inputs: forward scan, reverse scan and chunk backward,
// each fed with what the one before it made.
//
// In bf16, keys that point one way (cosine 0.95) go with a gain up to 1: at gains up to 2 dbeta is
// the small difference of two large sums, and what the kernels must round to bf16 takes it past the
// bound (kernels/README.md, at the end of the warpgroups' chunk backward).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/support/delta_program.h"

namespace kla::testing {
namespace {

double inner(const double* a, const double* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// The size of dg_t by what it sums: itself, or what Z_{t,t-1} of KERNEL_MATH (7.1) adds by way of P
// or of A, if that is larger. Under strong decay a few tokens with a weak one carry all of dg, and
// there these two may cancel. For one sequence without resets; dv and dg are the reference's.
Values gate_sizes(const DeltaProblem& p, const Values& dv, const Values& dg) {
  const auto& [B, T, H, K, V, C] = p.shape;
  Values sizes = dg;
  for (int64_t h = 0; h < H; ++h) {
    Values S(p.S_initial.begin() + h * V * K, p.S_initial.begin() + (h + 1) * V * K), x(dv.size());
    for (int64_t t = 0; t < T; ++t) {
      const int64_t row = t * H + h, last = row - H;
      const double a = std::exp(p.g[static_cast<size_t>(row)]);
      const double beta = p.beta[static_cast<size_t>(row)];
      const double *k = &p.k[static_cast<size_t>(row * K)], *old_x = x.data() + last * V;
      if (t > 0) {
        const double *old_k = k - H * K, *q = &p.q[static_cast<size_t>(row * K)];
        const double read = inner(&p.dout[static_cast<size_t>(row * V)], old_x, V);
        const double write = inner(&dv[static_cast<size_t>(row * V)], old_x, V) / beta;
        double& size = sizes[static_cast<size_t>(row)];
        size = std::max({std::abs(size), std::abs(a * p.scale * inner(q, old_k, K) * read),
                         std::abs(a * inner(k, old_k, K) * write)});
      }
      for (int64_t v = 0; v < V; ++v) {
        double* s = &S[static_cast<size_t>(v * K)];
        const double write = beta * (p.v[static_cast<size_t>(row * V + v)] - a * inner(s, k, K));
        x[static_cast<size_t>(row * V + v)] = write;
        for (int64_t c = 0; c < K; ++c) s[c] = a * s[c] + write * k[c];
      }
    }
  }
  return sizes;
}

double root_mean_square(const Values& x) {
  return std::sqrt(inner(x.data(), x.data(), static_cast<int64_t>(x.size())) /
                   static_cast<double>(x.size()));
}

enum class GateBound { relative, to_summands };

void expect_scan(const DeltaProblem& p, const std::string& what,
                 std::initializer_list<DType> types = {DType::f32, DType::bf16},
                 GateBound gate_bound = GateBound::relative) {
  const DeltaShape& s = p.shape;
  const DeltaCache cache = cache_of(p);
  const auto program = [&](Lab& lab) { run_scan(lab, p, cache); };
  for (DType compute : types) {
    Results reference = execute(Device::reference, program, 1, compute);
    const double bound = compute == DType::f32 ? kFloatBound : kBf16Bound;
    for (Device device : devices_under_test()) {
      Results results = execute(device, program, 1, compute);
      const std::string where = "T " + std::to_string(s.T) + ", K " + std::to_string(s.K) + ", V " +
                                std::to_string(s.V) + ", " + what + " on " + name_of(device) +
                                " in " + name_of(compute);
      expect_finite(results, where);
      if (compute == DType::bf16 && gate_bound == GateBound::to_summands) {
        Values error = results.at("dg");
        for (size_t i = 0; i < error.size(); ++i) error[i] -= reference.at("dg")[i];
        const Values sizes = gate_sizes(p, reference.at("dv"), reference.at("dg"));
        EXPECT_LE(root_mean_square(error), bound * root_mean_square(sizes)) << where << ": dg";
        results["dg"] = reference.at("dg");
      }
      expect_close(results, reference, bound, where);
    }
  }
}

TEST(DeviceScan, TakesEveryLength) {
  for (int64_t T : {0, 1, 2, 63, 64, 65, 130})
    expect_scan(draw_problem({.B = 2, .T = T, .H = 3, .K = 16, .V = 16}, Decay::slow, 0.5),
                "slow decay");
}

TEST(DeviceScan, TakesEveryHeadShape) {
  constexpr int64_t kShapes[][2] = {{96, 192}, {48, 96},  {16, 16},  {80, 48},
                                    {112, 32}, {256, 32}, {176, 16}, {32, 512}};
  for (const auto& [K, V] : kShapes)
    expect_scan(draw_problem({.T = 65, .H = 1, .K = K, .V = V}, Decay::slow, 0.3), "slow decay");
}

// bf16, K of 64 to 96, V a multiple of 64: where a device multiplies by warpgroups.
TEST(DeviceScan, TakesWholeWarpgroups) {
  for (int64_t T : {0, 1, 63, 64, 65, 128, 260})
    expect_scan(draw_problem({.B = 2, .T = T, .H = 2, .K = 64, .V = 64}, Decay::slow, 0.5),
                "slow decay", {DType::bf16});
  constexpr int64_t kShapes[][2] = {{80, 128}, {96, 64}, {64, 192}, {96, 256}};
  for (const auto& [K, V] : kShapes)
    expect_scan(draw_problem({.T = 200, .H = 2, .K = K, .V = V}, Decay::slow, 0.3), "slow decay",
                {DType::bf16});
  DeltaProblem p = draw_problem({.B = 2, .T = 260, .H = 1, .K = 96, .V = 64}, Decay::mixed, 0.5);
  for (std::initializer_list<int64_t> tokens :
       {std::initializer_list<int64_t>{0, 1, 2, 3}, {63, 127, 128, 129}, {64, 391}}) {
    p.reset = resets_at(p.shape, tokens);
    expect_scan(p, "resets from " + std::to_string(*tokens.begin()), {DType::bf16});
  }
}

// Heads apart by more than a slab of keys, a short last slab, an odd number of V columns.
TEST(DeviceScan, TakesWideKeysOfSeveralHeads) {
  DeltaProblem p = draw_problem({.B = 2, .T = 65, .H = 2, .K = 208, .V = 80}, Decay::mixed, 0.3);
  expect_scan(p, "mixed decay");
  p.reset = resets_at(p.shape, {3, 64, 65 + 40});
  expect_scan(p, "resets");
}

TEST(DeviceScan, StandsEveryDecayWithCorrelatedKeysOrLargeGain) {
  constexpr DeltaShape kShape{.T = 70, .H = 2, .K = 48, .V = 96};
  for (Decay decay : kDecays) {
    const bool strong = decay != Decay::none && decay != Decay::slow;
    const GateBound gates = strong ? GateBound::to_summands : GateBound::relative;
    const std::string what = "decay " + std::to_string(static_cast<int>(decay)) + ", ";
    expect_scan(draw_problem(kShape, decay, 0.95), what + "correlated keys",
                {DType::f32, DType::bf16}, gates);
    expect_scan(draw_problem(kShape, decay, 0.3, 2), what + "gain 2", {DType::f32, DType::bf16},
                gates);
    expect_scan(draw_problem(kShape, decay, 0.95, 2), what + "correlated keys, gain 2",
                {DType::f32});
  }
}

TEST(DeviceScan, StartsADocumentAtEveryTokenOfAChunk) {
  DeltaProblem p = draw_problem({.T = 66, .H = 1, .K = 16, .V = 16}, Decay::slow, 0.5);
  for (int64_t t = 0; t < 66; ++t) {
    p.reset = resets_at(p.shape, {t});
    expect_scan(p, "reset at " + std::to_string(t), {DType::f32});
  }
}

TEST(DeviceScan, StartsSeveralDocuments) {
  DeltaProblem p = draw_problem({.T = 130, .H = 2, .K = 32, .V = 32}, Decay::mixed, 0.5);
  for (std::initializer_list<int64_t> tokens : {std::initializer_list<int64_t>{0, 1, 2, 3},
                                                {62, 63, 64, 65},
                                                {63, 127, 128, 129},
                                                {31, 97}}) {
    p.reset = resets_at(p.shape, tokens);
    expect_scan(p, "resets from " + std::to_string(*tokens.begin()));
  }
  p.reset.assign(p.reset.size(), 1.0);
  expect_scan(p, "reset at every token", {DType::f32});
}

// dg of a document's first token is zero, whatever stood before it.
TEST(DeviceScan, HasNoGateGradientAtAReset) {
  DeltaProblem p = draw_problem({.T = 70, .H = 1, .K = 16, .V = 16}, Decay::slow);
  p.reset = resets_at(p.shape, {0, 5, 64});
  const DeltaCache cache = cache_of(p);
  for (Device device : devices_under_test())
    for (DType compute : {DType::f32, DType::bf16}) {
      const Results r = execute(
          device, [&](Lab& lab) { run_scan(lab, p, cache); }, 1, compute);
      for (size_t t : {0u, 5u, 64u}) EXPECT_EQ(r.at("dg")[t], 0) << t << " in " << name_of(compute);
      EXPECT_NE(r.at("dg")[6], 0);
    }
}

// Not a bit of one document reaches the next, or back.
void expect_documents_apart(int64_t dim, std::initializer_list<int64_t> starts) {
  const auto p = draw_problem({.T = 100, .H = 1, .K = dim, .V = dim}, Decay::slow, 0.5);
  const DeltaCache cache = cache_of(p);
  for (int64_t start : starts) {
    DeltaProblem one = p;
    one.reset = resets_at(one.shape, {start});
    DeltaProblem two = one;  // another first document
    for (Values* x : {&two.q, &two.v, &two.dout})
      for (size_t i = 0; i < static_cast<size_t>(start * dim); ++i) (*x)[i] = 3 - (*x)[i];
    for (double& x : two.S_initial) x = 5 - x;
    for (Device device : devices_under_test())
      for (DType compute : {DType::f32, DType::bf16}) {
        const auto run = [&](const DeltaProblem& problem) {
          return execute(
              device, [&](Lab& lab) { run_scan(lab, problem, cache); }, 1, compute);
        };
        const Results a = run(one), b = run(two);
        EXPECT_EQ(a.at("S_final"), b.at("S_final"));
        for (const char* name : {"o", "dq", "dk", "dv", "dbeta", "dg"}) {
          const Values &x = a.at(name), &y = b.at(name);
          const auto width = static_cast<std::ptrdiff_t>(x.size() / 100);
          EXPECT_TRUE(std::equal(x.begin() + start * width, x.end(), y.begin() + start * width))
              << name << ", document from " << start << " in " << name_of(compute);
        }
        EXPECT_NE(a.at("o"), b.at("o"));
      }
  }
}
TEST(DeviceScan, KeepsDocumentsApart) {
  expect_documents_apart(16, {1, 37, 64, 65});
  expect_documents_apart(64, {1, 64, 65});  // by warpgroups
}

// States may be carried in place, or not be given at all.
void expect_carried_states(int64_t K, int64_t V, DType compute) {
  DeltaProblem p = draw_problem({.B = 2, .T = 65, .H = 1, .K = K, .V = V}, Decay::slow);
  const DeltaShape& s = p.shape;
  for (bool given : {true, false}) {
    if (!given) {
      p.S_initial.assign(p.S_initial.size(), 0.0);
      p.dS_final.assign(p.dS_final.size(), 0.0);
    }
    const DeltaCache cache = cache_of(p);
    const auto program = [&](Lab& lab) {
      const DeltaInputs in = delta_inputs(lab, p, cache);
      const View S = lab.acc(p.S_initial, {s.B, s.H, s.V, s.K});
      const View dS = lab.acc(p.dS_final, {s.B, s.H, s.V, s.K});
      const View S_carried = given ? S : View(), dS_carried = given ? dS : View();
      const DeltaScanForward forward{.o = lab.compute({s.B, s.T, s.H, s.V}),
                                     .S_enter = View(),
                                     .S_final = S_carried,
                                     .S_initial = S_carried,
                                     .in = in};
      const DeltaReverseScan reverse{.dS_leave = lab.compute({s.B, s.NC(), s.H, s.V, s.K}),
                                     .dS_initial = dS_carried,
                                     .dS_final = dS_carried,
                                     .dout = lab.compute(p.dout, {s.B, s.T, s.H, s.V}),
                                     .in = in};
      lab(ops::delta_scan_forward, forward);
      lab(ops::delta_reverse_scan, reverse);
      lab.keep("o", forward.o);
      lab.keep("dS_leave", reverse.dS_leave);
      lab.keep("S", S);
      lab.keep("dS", dS);
    };
    const Results reference = execute(Device::reference, program, 1, compute);
    const double bound = compute == DType::f32 ? kFloatBound : kBf16Bound;
    for (Device device : devices_under_test())
      expect_close(execute(device, program, 1, compute), reference, bound,
                   given ? "in place" : "fresh");
  }
}
TEST(DeviceScan, CarriesStatesInPlaceOrStartsFromNothing) {
  expect_carried_states(32, 48, DType::f32);
  expect_carried_states(80, 64, DType::bf16);
}

TEST(DeviceScan, RepeatsItselfWithAnyNumberOfThreads) {
  const DeltaProblem p = draw_problem({.B = 2, .T = 70, .H = 2, .K = 48, .V = 96}, Decay::mixed);
  const DeltaCache cache = cache_of(p);
  const auto program = [&](Lab& lab) { run_scan(lab, p, cache); };
  for (Device device : devices_under_test())
    for (DType compute : {DType::f32, DType::bf16})
      expect_identical(execute(device, program, 1, compute), execute(device, program, 3, compute),
                       name_of(compute));
}

TEST(DeviceScan, RefusesHeadDimsItDoesNotTake) {
  constexpr int64_t kShapes[][2] = {{24, 32}, {272, 32}, {32, 24}};
  for (Device device : devices_under_test())
    for (const auto& [K, V] : kShapes) {
      const DeltaProblem p = draw_problem({.T = 3, .H = 1, .K = K, .V = V}, Decay::slow);
      const DeltaCache cache = cache_of(p);
      try {
        execute(device, [&](Lab& lab) { run_scan(lab, p, cache); });
        ADD_FAILURE() << "K " << K << ", V " << V << " was taken";
      } catch (const Error& error) {
        EXPECT_EQ(error.code(), Exit::usage);
        const std::string key = V % 16 ? "model.value_head_dim" : "model.key_head_dim";
        EXPECT_NE(std::string(error.what()).find(key), std::string::npos) << error.what();
      }
    }
}

}  // namespace
}  // namespace kla::testing
