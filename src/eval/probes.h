// Probes: numbers from inside the gated-delta mixers of a training step, layer by layer and head by
// head, for the study of step-size rules. They are computed on the host, in double, from one
// sequence of what the forward pass saved; the model and its losses do not notice.
//
// Notation of kernels/README.md: beta, k and v as the rule states them, S the state, a = e^g.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/ops.h"

namespace kla {

enum class Probe {
  write_gain,       // beta |k|^2 of a token: S shrinks along k by 1 - this; stable in (0, 2)
  decay,            // a of a token
  half_life,        // ln 2 / -g, tokens: how long the state would keep half of it at this decay
  key_norm,         // |k| after convolution and SiLU, before any normalisation
  value_norm,       // |v|, likewise
  key_cosine,       // of the keys of two successive tokens of a document, in one chunk
  residual_before,  // |v - a S^T k| of a token: what the decayed state gets wrong
  residual_after,   // the same behind the write; both in units of v
  state_norm,       // |S|, Frobenius, behind the last token of a chunk
  // (sum sigma^2)^2 / sum sigma^4 over the singular values of that S, from 1 to min(K, V): the
  // effective rank R_0 of S^T S (Bartlett, Long, Lugosi and Tsigler 2020, definition 3). None of
  // S = 0.
  state_rank,
  inverse_max,  // largest |T_ij|, j < i, of the gate-free inverse of a chunk (its diagonal is 1)
};
inline constexpr int kProbes = 11;
const char* name_of(Probe);  // as in metrics/probes.jsonl: "write_gain"

// Order statistics, not interpolated, of a sample of n: entry round(p (n - 1)) of the sorted one.
inline constexpr std::array<double, 6> kQuantiles = {0.05, 0.25, 0.5, 0.75, 0.95, 1};
using Quantiles = std::array<double, kQuantiles.size()>;
Quantiles quantiles_of(std::vector<double> sample);  // NaN if it is empty or holds a NaN

struct ProbeSummary {
  int64_t count = 0;  // values in `all`
  Quantiles all;      // of all heads together
  std::vector<Quantiles> heads;
};

struct LayerProbe {
  int64_t layer = 0;
  std::array<ProbeSummary, kProbes> values;

  const ProbeSummary& operator[](Probe probe) const { return values[static_cast<size_t>(probe)]; }
};

// At most this many chunks of 64 tokens are looked at, spread evenly over the sequence: enough for
// quantiles, and a cost that does not grow with the context length.
inline constexpr int64_t kProbeChunks = 8;

// From the first `tokens` tokens of the first sequence of a training forward pass (from the empty
// state, S_enter saved), as a MixerTap hands it over. Uses the threads of the context.
LayerProbe probe_mixer(const Context&, int64_t layer, const MixerPrepForward&,
                       const DeltaScanForward&, int64_t tokens);

}  // namespace kla
