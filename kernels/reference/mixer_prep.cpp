// Reference of what stands between the projections and the delta rule: short convolution and SiLU,
// the rule's maps of q, k and v, the write gain, the decay, and the gate-free inverse of each chunk
// (KERNEL_MATH 3, 10; kernels/step_rules.h). Forward and backward walk the tokens in order and
// share HeadToken, everything that one head computes for one token.
#include "kernels/ops.h"
#include "kernels/reference/delta_chunk.h"
#include "kernels/reference/short_conv.h"

namespace kla::reference {
namespace {

// The inputs of one sequence.
template <class T>
struct SequenceInputs {
  ConvInput<T> q, k, v;
  Matrix<T> a, b;        // [T,H]
  const uint8_t* reset;  // [T] or null
  int64_t position;      // tokens of the document before this call

  SequenceInputs(const MixerInputs& in, int64_t sequence) {
    const int64_t steps = in.q.dim(1), key_dim = in.q.cols(), value_dim = in.v.cols();
    auto rows = [&](const View& view) {
      return Matrix<T>{view.as<T>() + sequence * steps * view.stride, steps, view.cols(),
                       view.stride};
    };
    auto tail = [&](int64_t first, int64_t count) {
      if (in.conv_tail.empty()) return Matrix<T>{};
      const int64_t stride = in.conv_tail.stride;
      T* data = in.conv_tail.as<T>() + sequence * kConvTail * stride + first;
      return Matrix<T>{data, kConvTail, count, stride};
    };
    q = {rows(in.q), tail(0, key_dim)};
    k = {rows(in.k), tail(key_dim, key_dim)};
    v = {rows(in.v), tail(2 * key_dim, value_dim)};
    a = in.a.empty() ? Matrix<T>{} : rows(in.a);
    b = rows(in.b);
    reset = in.reset.empty() ? nullptr : in.reset.as<uint8_t>() + sequence * steps;
    position = in.position.empty() ? 0 : in.position.as<int64_t>()[sequence];
  }
};

template <class T>
struct Parameters {
  Matrix<T> q_conv, k_conv, v_conv;  // [channels,4]
  T *b_bias, *a_log, *a_bias;        // null where the mode has none
  T* theta;                          // [1] or [H]

  explicit Parameters(const MixerPrepParameters& w)
      : q_conv(matrix<T>(w.q_conv)),
        k_conv(matrix<T>(w.k_conv)),
        v_conv(matrix<T>(w.v_conv)),
        b_bias(pointer(w.b_bias)),
        a_log(pointer(w.a_log)),
        a_bias(pointer(w.a_bias)),
        theta(pointer(w.theta)),
        shared_theta_(w.theta.size() == 1) {}

  // Of head h, or null.
  T* theta_of(int64_t h) const { return theta ? theta + (shared_theta_ ? 0 : h) : nullptr; }

 private:
  bool shared_theta_;
  static T* pointer(const View& view) { return view.empty() ? nullptr : view.as<T>(); }
};

template <class T>
T bias(const T* values, int64_t h) {
  return values ? values[h] : 0;
}

// ---- One head, one token -----------------------------------------------------------------------

template <class T>
struct HeadToken {
  int64_t K, V;
  T *cq, *ck, *cv;  // convolutions
  T *q, *k, *v;     // after SiLU
  T *q_hat, *k_hat, *v_hat;
  T rq, rk, rv;        // reciprocal norms of q, k, v, where the maps use them
  T z, eta;            // decay logit with its bias; raw step
  StepInput<T> input;  // of the rule
  StepValue<T> gain;   // beta_hat and its derivatives
  T g;

  HeadToken(Arena& arena, int64_t key_dim, int64_t value_dim) : K(key_dim), V(value_dim) {
    for (T** row : {&cq, &ck, &q, &k, &q_hat, &k_hat}) *row = arena.allocate<T>(K);
    for (T** row : {&cv, &v, &v_hat}) *row = arena.allocate<T>(V);
  }
};

template <class T>
void activate(T* y, const T* c, int64_t n, bool silu) {
  for (int64_t i = 0; i < n; ++i) y[i] = silu ? silu_forward(c[i]) : c[i];
}

// In place: dy of the activated value becomes dc.
template <class T>
void activate_backward(T* dy, const T* c, int64_t n, bool silu) {
  for (int64_t i = 0; i < n; ++i) dy[i] = silu ? silu_backward(c[i], dy[i]) : dy[i];
}

template <class T>
void maps_forward(HeadToken<T>& x, const RuleInfo& rule, T eps) {
  switch (rule.query) {
    case QueryMap::raw:
      std::copy_n(x.q, x.K, x.q_hat);
      break;
    case QueryMap::unit:
      x.rq = unit_forward(x.q_hat, x.q, x.K, static_cast<T>(kUnitEps));
      break;
    case QueryMap::softmax:
      softmax_forward(x.q_hat, x.q, x.K);
      break;
  }
  if (rule.key == KeyMap::unit) {
    x.rk = unit_forward(x.k_hat, x.k, x.K, eps);
  } else {
    softmax_forward(x.k_hat, x.k, x.K);
  }
  switch (rule.value) {
    case ValueMap::raw:
      std::copy_n(x.v, x.V, x.v_hat);
      break;
    case ValueMap::unit:
      x.rv = unit_forward(x.v_hat, x.v, x.V, static_cast<T>(kUnitEps));
      break;
    case ValueMap::over_key_norm:
      over_key_norm_forward(x.v_hat, x.v, x.V, x.input.n, eps);
      break;
  }
}

// Gradients of the activated q, k, v. `dn` is that of n = |k|^2 so far; the value's share is added
// and 2 k dn passed on to k.
template <class T>
void maps_backward(T* dq, T* dk, T* dv, const T* dq_hat, const T* dk_hat, const T* dv_hat, T dn,
                   const HeadToken<T>& x, const RuleInfo& rule) {
  switch (rule.query) {
    case QueryMap::raw:
      std::copy_n(dq_hat, x.K, dq);
      break;
    case QueryMap::unit:
      unit_backward(dq, dq_hat, x.q_hat, x.K, x.rq);
      break;
    case QueryMap::softmax:
      softmax_backward(dq, dq_hat, x.q_hat, x.K);
      break;
  }
  if (rule.key == KeyMap::unit) {
    unit_backward(dk, dk_hat, x.k_hat, x.K, x.rk);
  } else {
    softmax_backward(dk, dk_hat, x.k_hat, x.K);
  }
  switch (rule.value) {
    case ValueMap::raw:
      std::copy_n(dv_hat, x.V, dv);
      break;
    case ValueMap::unit:
      unit_backward(dv, dv_hat, x.v_hat, x.V, x.rv);
      break;
    case ValueMap::over_key_norm:
      dn += over_key_norm_backward(dv, dv_hat, x.v_hat, x.V, x.input.n, x.input.eps);
      break;
  }
  add_scaled(dk, 2 * dn, x.k, x.K);
}

template <class T>
T decay_forward(DecayGate gate, const HeadToken<T>& x, const Parameters<T>& w, int64_t h) {
  switch (gate) {
    case DecayGate::dual_mamba:
      return mamba_gate_forward(x.z, w.a_log[h]);
    case DecayGate::dual_logsigmoid:
      return logsigmoid_gate_forward(x.z);
    case DecayGate::single:
      return single_gate_forward(x.eta);
  }
  return 0;
}

// Returns dz, adds to deta and to da_log.
template <class T>
T decay_backward(DecayGate gate, T* deta, const Parameters<T>& dw, T dg, const HeadToken<T>& x,
                 const Parameters<T>& w, int64_t h) {
  switch (gate) {
    case DecayGate::dual_mamba:
      return mamba_gate_backward(dw.a_log + h, x.z, w.a_log[h], dg);
    case DecayGate::dual_logsigmoid:
      return logsigmoid_gate_backward(x.z, dg);
    case DecayGate::single:
      *deta += single_gate_backward(x.eta, dg);
      return 0;
  }
  return 0;
}

template <class T>
void head_forward(HeadToken<T>& x, const SequenceInputs<T>& in, const Parameters<T>& w,
                  const MixerOptions& options, int64_t t, int64_t h, const DocumentPlace& place) {
  const RuleInfo& rule = rule_info(options.rule);
  const bool silu = rule.key != KeyMap::softmax;
  const T eps = static_cast<T>(options.eps);
  conv_channels_forward(x.cq, in.q, w.q_conv, h * x.K, x.K, t, place.start);
  conv_channels_forward(x.ck, in.k, w.k_conv, h * x.K, x.K, t, place.start);
  conv_channels_forward(x.cv, in.v, w.v_conv, h * x.V, x.V, t, place.start);
  activate(x.q, x.cq, x.K, silu);
  activate(x.k, x.ck, x.K, silu);
  activate(x.v, x.cv, x.V, true);
  x.eta = sigmoid_forward(in.b[t][h] + bias(w.b_bias, h));
  x.z = in.a.data && options.decay != DecayGate::single ? in.a[t][h] + bias(w.a_bias, h) : 0;
  x.input = {.eta = x.eta,
             .n = dot(x.k, x.k, x.K),
             .eps = eps,
             .t = static_cast<T>(place.position),
             .scalar = w.theta ? softplus_forward(*w.theta_of(h)) : 0};
  x.gain = visit_rule(options.rule,
                      [&](auto r) { return write_gain<decltype(r)>(x.input, options.factor); });
  maps_forward(x, rule, eps);
  x.g = decay_forward(options.decay, x, w, h);
}

// ---- Forward -----------------------------------------------------------------------------------

// The last three raw inputs after T tokens, zero before `document_start`. Rows are written in
// ascending order and read from higher ones, so `out` may be the tail of `in`.
template <class T>
void advance_tail(const Matrix<T>& out, const ConvInput<T>& in, int64_t document_start) {
  for (int64_t r = 0; r < kConvTail; ++r) {
    const int64_t t = in.x.rows - kConvTail + r;
    for (int64_t c = 0; c < in.x.cols; ++c) out[r][c] = t >= document_start ? in.value(t, c) : 0;
  }
}

template <class T>
void store_progress(const MixerPrepForward& a, const SequenceInputs<T>& in, int64_t b,
                    const DocumentPlace& place) {
  if (!a.conv_tail_out.empty()) {
    const int64_t stride = a.conv_tail_out.stride;
    T* data = a.conv_tail_out.as<T>() + b * kConvTail * stride;
    for (const ConvInput<T>* part : {&in.q, &in.k, &in.v}) {
      advance_tail({data, kConvTail, part->x.cols, stride}, *part, place.start);
      data += part->x.cols;
    }
  }
  if (!a.position_out.empty()) a.position_out.as<int64_t>()[b] = place.position;
}

// T_zero of every chunk and head of sequence b; unit rows where the last chunk is short.
template <class T>
void invert_chunks(const MixerPrepForward& a, const Matrix<T>& A, int64_t b) {
  const int64_t steps = a.k_hat.dim(1), H = a.k_hat.dim(2), K = a.k_hat.dim(3), C = A.rows;
  fill(A, T(0));
  for (int64_t n = 0; n < chunk_count(steps, C); ++n) {
    for (int64_t h = 0; h < H; ++h) {
      const ChunkPlace place{b, n, h, n * C, std::min(C, steps - n * C)};
      const Matrix<T> k = chunk_rows<T>(a.k_hat, place);
      const Series<T> beta = chunk_series<T>(a.beta, place);
      for (int64_t i = 0; i < C; ++i)
        for (int64_t j = 0; j < i; ++j) A[i][j] = i < place.L ? beta[i] * dot(k[i], k[j], K) : 0;
      unit_lower_inverse_forward(chunk_matrix<T>(a.T_zero, place), A);
    }
  }
}

template <class T>
void sequence_forward(const MixerPrepForward& a, HeadToken<T>& x, int64_t b) {
  const SequenceInputs<T> in(a.in, b);
  const Parameters<T> w(a.w);
  const Matrix<T> q_hat = matrix<T>(a.q_hat), k_hat = matrix<T>(a.k_hat);
  const Matrix<T> v_hat = matrix<T>(a.v_hat), beta = matrix<T>(a.beta), g = matrix<T>(a.g);
  const int64_t steps = a.q_hat.dim(1), H = a.q_hat.dim(2);
  DocumentPlace place{.position = in.position};
  for (int64_t t = 0; t < steps; ++t) {
    const bool reset = in.reset && in.reset[t];
    place.advance(t, reset);
    for (int64_t h = 0; h < H; ++h) {
      const int64_t row = b * steps + t;
      head_forward(x, in, w, a.options, t, h, place);
      std::copy_n(x.q_hat, x.K, q_hat[row * H + h]);
      std::copy_n(x.k_hat, x.K, k_hat[row * H + h]);
      std::copy_n(x.v_hat, x.V, v_hat[row * H + h]);
      beta[row][h] = x.gain.beta_hat;
      g[row][h] = x.g;
    }
  }
  store_progress(a, in, b, place);
}

template <class T>
void mixer_prep_forward(Context& context, const MixerPrepForward& a) {
  const int64_t B = a.q_hat.dim(0);
  const int64_t C = a.T_zero.empty() ? kChunk : a.T_zero.dim(4);
  ArenaScope scope(*context.scratch);
  HeadToken<T> x(*context.scratch, a.q_hat.dim(3), a.v_hat.dim(3));
  const Matrix<T> A = new_matrix<T>(*context.scratch, C, C);
  context.parallel(1, [&](int64_t, int) {
    for (int64_t b = 0; b < B; ++b) {
      sequence_forward(a, x, b);
      if (!a.T_zero.empty()) invert_chunks(a, A, b);
    }
  });
}

// ---- Backward ----------------------------------------------------------------------------------

// Rows [T, *] of sequence b in a view of [B,T,*].
template <class T>
Matrix<T> sequence_rows(const View& view, int64_t b) {
  return {view.as<T>() + b * view.dim(1) * view.stride, view.dim(1), view.cols(), view.stride};
}

// The gradients of one sequence that the tokens write or add to.
template <class T>
struct SequenceGradients {
  Matrix<T> dq, dk, dv;  // [T,channels] of the raw inputs
  Matrix<T> da, db;      // [T,H]

  SequenceGradients(const MixerPrepBackward& a, int64_t b)
      : dq(sequence_rows<T>(a.dq, b)),
        dk(sequence_rows<T>(a.dk, b)),
        dv(sequence_rows<T>(a.dv, b)),
        da(a.da.empty() ? Matrix<T>{} : sequence_rows<T>(a.da, b)),
        db(sequence_rows<T>(a.db, b)) {
    for (const Matrix<T>& m : {dq, dk, dv}) fill(m, T(0));
  }
};

// The logits of one head and token: step, learned scalar, decay.
template <class T>
void gates_backward(const SequenceGradients<T>& out, const Parameters<T>& dw, T dbeta, T dg,
                    const HeadToken<T>& x, const Parameters<T>& w, const MixerOptions& options,
                    int64_t t, int64_t h) {
  T deta = dbeta * x.gain.d_eta;
  const T dz = decay_backward(options.decay, &deta, dw, dg, x, w, h);
  const T db = sigmoid_backward(x.eta, deta);
  out.db[t][h] = db;
  if (out.da.data) out.da[t][h] = dz;
  if (dw.b_bias) dw.b_bias[h] += db;
  if (dw.a_bias) dw.a_bias[h] += dz;
  if (dw.theta) *dw.theta_of(h) += softplus_backward(*w.theta_of(h), dbeta * x.gain.d_scalar);
}

template <class T>
void sequence_backward(const MixerPrepBackward& a, HeadToken<T>& x, HeadToken<T>& dx, int64_t b) {
  const SequenceInputs<T> in(a.in, b);
  const SequenceGradients<T> out(a, b);
  const Parameters<T> w(a.w), dw(a.dw);
  const Matrix<T> dq_hat = matrix<T>(a.dq_hat), dk_hat = matrix<T>(a.dk_hat);
  const Matrix<T> dv_hat = matrix<T>(a.dv_hat), dbeta = matrix<T>(a.dbeta), dg = matrix<T>(a.dg);
  const RuleInfo& rule = rule_info(a.options.rule);
  const bool silu = rule.key != KeyMap::softmax;
  const int64_t steps = a.dq_hat.dim(1), H = a.dq_hat.dim(2), K = x.K, V = x.V;
  DocumentPlace place{.position = in.position};
  for (int64_t t = 0; t < steps; ++t) {
    place.advance(t, in.reset && in.reset[t]);
    for (int64_t h = 0; h < H; ++h) {
      const int64_t row = b * steps + t, head = row * H + h;
      head_forward(x, in, w, a.options, t, h, place);
      gates_backward(out, dw, dbeta[row][h], dg[row][h], x, w, a.options, t, h);
      maps_backward(dx.q, dx.k, dx.v, dq_hat[head], dk_hat[head], dv_hat[head],
                    dbeta[row][h] * x.gain.d_n, x, rule);
      activate_backward(dx.q, x.cq, K, silu);
      activate_backward(dx.k, x.ck, K, silu);
      activate_backward(dx.v, x.cv, V, true);
      conv_channels_backward(out.dq, dw.q_conv, dx.q, in.q, w.q_conv, h * K, K, t, place.start);
      conv_channels_backward(out.dk, dw.k_conv, dx.k, in.k, w.k_conv, h * K, K, t, place.start);
      conv_channels_backward(out.dv, dw.v_conv, dx.v, in.v, w.v_conv, h * V, V, t, place.start);
    }
  }
}

template <class T>
void mixer_prep_backward(Context& context, const MixerPrepBackward& a) {
  ArenaScope scope(*context.scratch);
  HeadToken<T> x(*context.scratch, a.dq_hat.dim(3), a.dv_hat.dim(3));
  HeadToken<T> dx(*context.scratch, a.dq_hat.dim(3), a.dv_hat.dim(3));
  context.parallel(1, [&](int64_t, int) {
    for (int64_t b = 0; b < a.dq_hat.dim(0); ++b) sequence_backward(a, x, dx, b);
  });
}

KLA_OP(mixer_prep_forward, reference, mixer_prep_forward<double>);
KLA_OP(mixer_prep_backward, reference, mixer_prep_backward<double>);

}  // namespace
}  // namespace kla::reference
