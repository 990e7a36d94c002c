// The gated delta rule token by token with its sequential adjoint, in double, exactly as
// KERNEL_MATH section 1 defines it: the yardstick for the chunkwise kernels. A reset zeroes the
// state before its token.
#pragma once

#include <cmath>

#include "tests/support/lab.h"

namespace kla::testing {

struct DeltaShape {
  int64_t B = 1, T = 1, H = 1, K = 1, V = 1, C = 64;
  int64_t NC() const { return (T + C - 1) / C; }
  int64_t tokens() const { return B * T * H; }
};

// All of one delta-rule problem: [B,T,H,...] as in ops.h, states [B,H,V,K], reset [B,T] or empty.
struct DeltaProblem {
  DeltaShape shape;
  double scale = 1;
  Values q, k, v, beta, g, S_initial, dout, dS_final, reset;

  bool resets_at(int64_t b, int64_t t) const {
    return !reset.empty() && reset[static_cast<size_t>(b * shape.T + t)] != 0;
  }
};

// One head of one sequence. `at(x, t)` is row t of a [B,T,H,width] tensor.
class DeltaHead {
 public:
  DeltaHead(const DeltaProblem& p, int64_t b, int64_t h) : p_(p), b_(b), h_(h) {
    const size_t size = static_cast<size_t>(p.shape.V * p.shape.K);
    const size_t first = static_cast<size_t>(b * p.shape.H + h) * size;
    states_.assign(1, Values(p.S_initial.begin() + static_cast<std::ptrdiff_t>(first),
                             p.S_initial.begin() + static_cast<std::ptrdiff_t>(first + size)));
  }

  void forward(Results& r) {
    for (int64_t t = 0; t < p_.shape.T; ++t) {
      Values S = decayed(t);
      const double* k = row(p_.k, t, K());
      const Values error = residual(S, t);
      for (int64_t v = 0; v < V(); ++v) {
        double out = 0;
        for (int64_t c = 0; c < K(); ++c) {
          double& s = S[index(v, c)];
          s += scalar(p_.beta, t) * error[static_cast<size_t>(v)] * k[c];
          out += s * row(p_.q, t, K())[c];
        }
        row(r["o"], t, V())[v] = p_.scale * out;
      }
      states_.push_back(std::move(S));
    }
    put_state(r["S_final"], states_.back());
  }

  void backward(Results& r) {
    Values dS(states_[0].size());
    get_state(p_.dS_final, dS);
    for (int64_t t = p_.shape.T - 1; t >= 0; --t) step_back(r, t, dS);
    put_state(r["dS_initial"], dS);
  }

 private:
  int64_t K() const { return p_.shape.K; }
  int64_t V() const { return p_.shape.V; }
  size_t index(int64_t v, int64_t k) const { return static_cast<size_t>(v * K() + k); }
  size_t token(int64_t t) const {
    return static_cast<size_t>((b_ * p_.shape.T + t) * p_.shape.H + h_);
  }
  double* row(Values& values, int64_t t, int64_t width) const {
    return values.data() + token(t) * static_cast<size_t>(width);
  }
  const double* row(const Values& values, int64_t t, int64_t width) const {
    return values.data() + token(t) * static_cast<size_t>(width);
  }
  double scalar(const Values& values, int64_t t) const { return values[token(t)]; }

  double keep(int64_t t) const { return p_.resets_at(b_, t) ? 0.0 : std::exp(scalar(p_.g, t)); }
  Values decayed(int64_t t) const {
    Values S = states_[static_cast<size_t>(t)];
    for (double& s : S) s *= keep(t);
    return S;
  }
  Values residual(const Values& decayed_state, int64_t t) const {
    Values error(static_cast<size_t>(V()));
    for (int64_t v = 0; v < V(); ++v) {
      double sum = row(p_.v, t, V())[v];
      for (int64_t c = 0; c < K(); ++c) sum -= decayed_state[index(v, c)] * row(p_.k, t, K())[c];
      error[static_cast<size_t>(v)] = sum;
    }
    return error;
  }

  void step_back(Results& r, int64_t t, Values& dS) const {
    const Values old = decayed(t), error = residual(old, t);
    const Values& S = states_[static_cast<size_t>(t + 1)];
    const double *q = row(p_.q, t, K()), *k = row(p_.k, t, K()), *dout = row(p_.dout, t, V());
    const double beta = scalar(p_.beta, t);
    double *dq = row(r["dq"], t, K()), *dk = row(r["dk"], t, K()), dbeta = 0, dg = 0;
    for (int64_t v = 0; v < V(); ++v) {
      double dx = 0;
      for (int64_t c = 0; c < K(); ++c) {
        dq[c] += p_.scale * S[index(v, c)] * dout[v];
        dS[index(v, c)] += p_.scale * q[c] * dout[v];
        dx += dS[index(v, c)] * k[c];
      }
      const double e = error[static_cast<size_t>(v)], dv = beta * dx;
      dbeta += dx * e;
      row(r["dv"], t, V())[v] = dv;
      for (int64_t c = 0; c < K(); ++c) {
        const size_t i = index(v, c);
        dk[c] += dS[i] * beta * e - old[i] * dv;
        const double dS_old = dS[i] - k[c] * dv;
        dg += dS_old * old[i];
        dS[i] = keep(t) * dS_old;
      }
    }
    r["dbeta"][token(t)] = dbeta;
    r["dg"][token(t)] = dg;
  }

  void put_state(Values& all, const Values& S) const {
    const size_t first = static_cast<size_t>(b_ * p_.shape.H + h_) * S.size();
    for (size_t i = 0; i < S.size(); ++i) all[first + i] = S[i];
  }
  void get_state(const Values& all, Values& S) const {
    const size_t first = static_cast<size_t>(b_ * p_.shape.H + h_) * S.size();
    for (size_t i = 0; i < S.size(); ++i) S[i] = all[first + i];
  }

  const DeltaProblem& p_;
  int64_t b_, h_;
  std::vector<Values> states_;  // before the first token, after each
};

// o, S_final, dq, dk, dv, dbeta, dg, dS_initial.
inline Results recurrence(const DeltaProblem& p) {
  const DeltaShape& s = p.shape;
  Results r;
  const auto zeros = [](int64_t n) { return Values(static_cast<size_t>(n), 0.0); };
  r["o"] = r["dv"] = zeros(s.tokens() * s.V);
  r["dq"] = r["dk"] = zeros(s.tokens() * s.K);
  r["dbeta"] = r["dg"] = zeros(s.tokens());
  r["S_final"] = r["dS_initial"] = zeros(s.B * s.H * s.V * s.K);
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t h = 0; h < s.H; ++h) {
      DeltaHead head(p, b, h);
      head.forward(r);
      head.backward(r);
    }
  return r;
}

}  // namespace kla::testing
