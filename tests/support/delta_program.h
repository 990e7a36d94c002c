// Delta-rule problems for the tests and the program that runs delta_scan_forward,
// delta_reverse_scan and delta_chunk_backward on one. The cache T_zero is made here, from
// its definition.
#pragma once

#include "kernels/ops.h"
#include "tests/support/compare.h"
#include "tests/support/recurrence.h"

namespace kla::testing {

inline std::string describe(const DeltaShape& s, const std::string& more) {
  return "B " + std::to_string(s.B) + ", T " + std::to_string(s.T) + ", H " + std::to_string(s.H) +
         ", K " + std::to_string(s.K) + ", V " + std::to_string(s.V) + ", C " +
         std::to_string(s.C) + ", " + more;
}

// Flags [B,T] that start a document at these tokens, counted over all sequences.
inline Values resets_at(const DeltaShape& s, const std::vector<int64_t>& tokens) {
  Values reset(static_cast<size_t>(s.B * s.T), 0.0);
  for (int64_t t : tokens) reset[static_cast<size_t>(t)] = 1;
  return reset;
}

struct DeltaCache {
  Values T_zero;  // [B,NC,H,C,C]: (I + A)^-1, A_ij = beta_i k_i.k_j for j < i; identity in padding
};

// Row i of the inverse by forward substitution: T_i = e_i - sum_{j<i} A_ij T_j.
inline void invert_chunk(const DeltaProblem& p, int64_t b, int64_t n, int64_t h, double* T_zero) {
  const DeltaShape& s = p.shape;
  for (int64_t i = 0; i < s.C; ++i) {
    double* row = T_zero + i * s.C;
    std::fill(row, row + s.C, 0.0);
    row[i] = 1;
    const int64_t t = n * s.C + i;
    if (t >= s.T) continue;
    const int64_t token = (b * s.T + t) * s.H + h;
    const double* k = p.k.data() + token * s.K;
    for (int64_t j = 0; j < i; ++j) {
      const double* other = k - (i - j) * s.H * s.K;
      double A = 0;
      for (int64_t c = 0; c < s.K; ++c) A += k[c] * other[c];
      A *= p.beta[static_cast<size_t>(token)];
      for (int64_t c = 0; c <= j; ++c) row[c] -= A * T_zero[j * s.C + c];
    }
  }
}

inline DeltaCache cache_of(const DeltaProblem& p) {
  const DeltaShape& s = p.shape;
  DeltaCache cache{Values(static_cast<size_t>(s.B * s.NC() * s.H * s.C * s.C))};
  double* T_zero = cache.T_zero.data();
  for (int64_t b = 0; b < s.B; ++b)
    for (int64_t n = 0; n < s.NC(); ++n)
      for (int64_t h = 0; h < s.H; ++h, T_zero += s.C * s.C) invert_chunk(p, b, n, h, T_zero);
  return cache;
}

enum class Decay { none, slow, mixed, strong, constant };  // as in KERNEL_MATH 12
inline constexpr Decay kDecays[] = {Decay::none, Decay::slow, Decay::mixed, Decay::strong,
                                    Decay::constant};

inline Values draw_decay(const std::string& name, int64_t count, Decay decay) {
  Values u = uniform(name, count, 0, 1), choice = uniform(name + "/choice", count, 0, 1);
  for (size_t i = 0; i < u.size(); ++i) {
    const bool hard = decay == Decay::strong || (decay == Decay::mixed && choice[i] < 0.2);
    if (decay == Decay::none)
      u[i] = 0;
    else if (decay == Decay::constant)
      u[i] = -20;
    else
      u[i] = to_f32(hard ? -20 * u[i] : -std::exp(-7 + 5 * u[i]));
  }
  return u;
}

// Unit keys with the given cosine to a common direction, as SiLU makes them.
inline Values draw_unit_keys(const std::string& name, int64_t count, int64_t K, double cosine) {
  Values keys = uniform(name, count * K);
  for (int64_t i = 0; i < count; ++i) {
    double* k = keys.data() + i * K;
    double norm = 0;
    for (int64_t c = 0; c < K; ++c) norm += k[c] * k[c];
    const double own = std::sqrt((1 - cosine) / std::max(norm, 1e-12));
    double total = 0;
    for (int64_t c = 0; c < K; ++c) {
      k[c] = own * k[c] + std::sqrt(cosine / static_cast<double>(K));
      total += k[c] * k[c];
    }
    for (int64_t c = 0; c < K; ++c) k[c] = to_f32(k[c] / std::sqrt(total));
  }
  return keys;
}

inline DeltaProblem draw_problem(const DeltaShape& s, Decay decay, double cosine = 0,
                                 double max_gain = 1) {
  DeltaProblem p;
  p.shape = s;
  p.scale = 1 / std::sqrt(static_cast<double>(s.K));
  const std::string name = "T" + std::to_string(s.T);
  p.q = uniform(name + "/q", s.tokens() * s.K);
  p.k = draw_unit_keys(name + "/k", s.tokens(), s.K, cosine);
  p.v = uniform(name + "/v", s.tokens() * s.V);
  p.beta = uniform(name + "/beta", s.tokens(), 0, max_gain);
  p.g = draw_decay(name + "/g", s.tokens(), decay);
  p.dout = uniform(name + "/dout", s.tokens() * s.V);
  p.S_initial = uniform(name + "/S", s.B * s.H * s.V * s.K);
  p.dS_final = uniform(name + "/dS", s.B * s.H * s.V * s.K);
  return p;
}

inline DeltaInputs delta_inputs(Lab& lab, const DeltaProblem& p, const DeltaCache& cache) {
  const DeltaShape& s = p.shape;
  DeltaInputs in;
  in.q = lab.compute(p.q, {s.B, s.T, s.H, s.K});
  in.k = lab.compute(p.k, {s.B, s.T, s.H, s.K});
  in.v = lab.compute(p.v, {s.B, s.T, s.H, s.V});
  in.beta = lab.acc(p.beta, {s.B, s.T, s.H});
  in.g = lab.acc(p.g, {s.B, s.T, s.H});
  in.T_zero = lab.compute(cache.T_zero, {s.B, s.NC(), s.H, s.C, s.C});
  if (!p.reset.empty()) in.reset = lab.typed(DType::u8, p.reset, {s.B, s.T});
  in.scale = p.scale;
  return in;
}

// Backward of the scan; returns the views named as in recurrence().
inline std::map<std::string, View> run_scan_backward(Lab& lab, const DeltaShape& s,
                                                     const DeltaInputs& in, const View& S_enter,
                                                     const View& dout, const View& dS_final) {
  DeltaReverseScan reverse{.dS_leave = lab.compute({s.B, s.NC(), s.H, s.V, s.K}),
                           .dS_initial = lab.acc({s.B, s.H, s.V, s.K}),
                           .dS_final = dS_final,
                           .dout = dout,
                           .in = in};
  reverse.in.v = View();  // declared as not read
  lab(ops::delta_reverse_scan, reverse);
  const DeltaChunkBackward chunk{.dq = lab.compute({s.B, s.T, s.H, s.K}),
                                 .dk = lab.compute({s.B, s.T, s.H, s.K}),
                                 .dv = lab.compute({s.B, s.T, s.H, s.V}),
                                 .dbeta = lab.acc({s.B, s.T, s.H}),
                                 .dg = lab.acc({s.B, s.T, s.H}),
                                 .dout = dout,
                                 .S_enter = S_enter,
                                 .dS_leave = reverse.dS_leave,
                                 .in = in};
  lab(ops::delta_chunk_backward, chunk);
  return {{"dq", chunk.dq},       {"dk", chunk.dk}, {"dv", chunk.dv},
          {"dbeta", chunk.dbeta}, {"dg", chunk.dg}, {"dS_initial", reverse.dS_initial}};
}

// Forward and backward of the scan; keeps what recurrence() returns.
inline void run_scan(Lab& lab, const DeltaProblem& p, const DeltaCache& cache) {
  const DeltaShape& s = p.shape;
  const DeltaInputs in = delta_inputs(lab, p, cache);
  const DeltaScanForward forward{.o = lab.compute({s.B, s.T, s.H, s.V}),
                                 .S_enter = lab.compute({s.B, s.NC(), s.H, s.V, s.K}),
                                 .S_final = lab.acc({s.B, s.H, s.V, s.K}),
                                 .S_initial = lab.acc(p.S_initial, {s.B, s.H, s.V, s.K}),
                                 .in = in};
  lab(ops::delta_scan_forward, forward);
  lab.keep("o", forward.o);
  lab.keep("S_final", forward.S_final);
  const View dout = lab.compute(p.dout, {s.B, s.T, s.H, s.V});
  const View dS_final = lab.acc(p.dS_final, {s.B, s.H, s.V, s.K});
  for (const auto& [name, view] : run_scan_backward(lab, s, in, forward.S_enter, dout, dS_final))
    lab.keep(name, view);
}

}  // namespace kla::testing
