// Table of contents of the kernels: every op, once, with shapes and one line of mathematics.
// kernels/README.md holds the derivations; kernels/reference/ is the readable implementation.
//
// Dimensions: B batch, T time, M = B*T tokens, D width, F MLP width, H heads, K key dim, V value
// dim, C chunk length (64; the reference takes any), NC = ceil(T/C) chunks, N vocabulary. Types:
// "compute" and "acc" are context.compute and context.accumulate (f32/f32 on cpu, f64/f64 on
// reference, bf16/f32 on cuda). "columns" marks arguments that may be column views of a wider
// matrix. Backward functions ADD to parameter gradients and OVERWRITE activation gradients.
// Optional views may be empty. Results are bit-identical for any number of threads. An op touches
// memory only inside context.parallel(), takes scratch from context.scratch and gives it back.
#pragma once

#include "core/op.h"
#include "kernels/step_rules.h"

namespace kla {

inline constexpr int64_t kChunk = 64;
inline constexpr int64_t kConvWidth = 4;
inline constexpr int64_t kConvTail = kConvWidth - 1;  // inputs of the past that a convolution needs

inline int64_t chunk_count(int64_t T, int64_t C = kChunk) {
  return (T + C - 1) / C;
}

// x[m] = table[token[m]].
struct EmbeddingForward {
  View x;       // [M,D] acc
  View tokens;  // [M] i32, all in [0, N)
  View table;   // [N,D] compute
};
struct EmbeddingBackward {  // dtable[token[m]] += dx[m], summed in the order of m
  View dtable;              // [N,D] acc, added to
  View dx;                  // [M,D] acc
  View tokens;              // [M] i32
};

// y = w o x * rstd,  rstd = (mean_d(x^2) + eps)^-1/2.
struct RmsNormForward {
  View y;     // [M,D] compute
  View rstd;  // [M] acc; kept for backward
  View x;     // [M,D] acc
  View w;     // [D] acc
  double eps = 1e-5;
};
// dx = dresidual + rstd (h - xhat mean(h xhat)),  h = dy o w,  xhat = x rstd;  dw += sum dy xhat.
struct RmsNormBackward {
  View dx;         // [M,D] acc; may be the same memory as dresidual
  View dx_copy;    // [M,D] compute, optional: dx once more, for the matrix products below it
  View dw;         // [D] acc, added to
  View dresidual;  // [M,D] acc, optional: the gradient of the other branch
  View dy;         // [M,D] compute
  View x;          // [M,D] acc
  View w;          // [D] acc
  View rstd;       // [M] acc
};

// y = x w^T, or residual + x w^T.
struct MatmulForward {
  View y;         // [M,N] compute, or acc; columns
  View x;         // [M,K] compute; columns
  View w;         // [N,K] compute
  View residual;  // [M,N] type of y, optional; may be the same memory as y
};
struct MatmulBackwardInput {  // dx = dy w
  View dx;                    // [M,K] compute
  View dy;                    // [M,N] compute; columns
  View w;                     // [N,K] compute
};
struct MatmulBackwardWeight {  // dw += dy^T x
  View dw;                     // [N,K] acc, added to
  View dy;                     // [M,N] compute; columns
  View x;                      // [M,K] compute; columns
};

// What distinguishes one gated-delta mixer from another, beside its shapes.
struct MixerOptions {
  int rule = 1;  // index into Rules (kernels/step_rules.h)
  SeqFactor factor = SeqFactor::none;
  DecayGate decay = DecayGate::dual_mamba;
  double eps = 1e-6;  // of the key norm; query and value norms use kUnitEps
};

// Small parameters of the mixer, or their gradients. Views a rule or gate does not use are empty.
struct MixerPrepParameters {
  View q_conv, k_conv;  // [H*K,4] acc; tap 3 multiplies the current token
  View v_conv;          // [H*V,4] acc
  View b_bias;          // [H] acc
  View a_log;           // [H] acc, dual_mamba
  View a_bias;          // [H] acc: dt_bias of dual_mamba, bias of dual_logsigmoid
  View theta;           // [1] (one for all heads) or [H] acc: logit of the rule's learned scalar
};

// The raw inputs of a mixer and where it stands in its sequence; used by forward and backward.
struct MixerInputs {
  View q, k;       // [B,T,H*K] compute, columns: the projections
  View v;          // [B,T,H*V] compute, columns
  View a, b;       // [B,T,H] compute or acc, columns: logits of decay and step
  View reset;      // [B,T] u8, optional: 1 where a document starts; taps and t restart there
  View conv_tail;  // [B,3,2*H*K+H*V] acc, optional: last raw inputs (q|k|v) before this call;
                   // empty: zeros
  View position;   // [B] i64, optional: tokens already seen (t of the last one); empty: zeros
};

// From projections to what the scan needs, per token: c = conv4(x); q,k,v = silu(c) (q,k without
// silu under KeyMap::softmax); q_hat, k_hat, v_hat by the rule's maps; beta_hat = rule *
// seq_factor(t); g = log-decay by the decay gate, <= 0; T_zero = (I + A)^-1 per chunk with
// A_ij = beta_i k_i.k_j for j < i (KERNEL_MATH (3.1)): gate-free, unit lower triangular, unit rows
// where the last chunk is short.
struct MixerPrepForward {
  View q_hat, k_hat;   // [B,T,H,K] compute
  View v_hat;          // [B,T,H,V] compute
  View beta;           // [B,T,H] acc: beta-hat
  View g;              // [B,T,H] acc
  View T_zero;         // [B,NC,H,C,C] compute; empty when only decoding
  View conv_tail_out;  // [B,3,2*H*K+H*V] acc, optional; may be the memory of in.conv_tail; zeros
                       // where an input belongs to an earlier document
  View position_out;   // [B] i64, optional; may be the memory of in.position
  MixerInputs in;
  MixerPrepParameters w;
  MixerOptions options;
};
struct MixerPrepBackward {
  View dq, dk, dv;  // [B,T,H*K], [B,T,H*V] compute, columns: gradients of in.q, in.k, in.v
  View da, db;      // [B,T,H] compute or acc, columns; da is zero-filled under DecayGate::single
  MixerPrepParameters dw;  // added to
  View dq_hat, dk_hat;     // [B,T,H,K] compute
  View dv_hat;             // [B,T,H,V] compute
  View dbeta;              // [B,T,H] acc
  View dg;                 // [B,T,H] acc
  MixerInputs in;
  MixerPrepParameters w;
  MixerOptions options;
};

// Inputs shared by the scan and its backward halves (the outputs of MixerPrepForward). The decay
// comes per token: its sums G within a chunk reach -1000 and more, where one f32 would cost their
// differences four digits, so each kernel sums for itself, in double or in two floats.
struct DeltaInputs {
  View q, k;         // [B,T,H,K] compute
  View v;            // [B,T,H,V] compute
  View beta, g;      // [B,T,H] acc
  View T_zero;       // [B,NC,H,C,C] compute
  View reset;        // [B,T] u8, optional: Gam, D, E and gamma are zero across a reset
  double scale = 1;  // K^-1/2
};

// Gated delta rule in chunkwise form (KERNEL_MATH 4a). With S the state entering a chunk, stored
// [V][K]:
//   R = K S^T, Y = V - D R, X = T (beta o Y), O = s D (Q S^T) + P X, S' = gamma S + (E X)^T K.
struct DeltaScanForward {
  View o;          // [B,T,H,V] compute
  View S_enter;    // [B,NC,H,V,K] compute, optional: state entering each chunk, for backward
  View S_final;    // [B,H,V,K] acc, optional; may be the memory of S_initial
  View S_initial;  // [B,H,V,K] acc, optional; empty: zeros
  DeltaInputs in;
};
// Reverse scan (KERNEL_MATH 6, equations 1, 2, 4, 10): only the state's gradient.
struct DeltaReverseScan {
  View dS_leave;    // [B,NC,H,V,K] compute: gradient of the state leaving each chunk
  View dS_initial;  // [B,H,V,K] acc, optional
  View dS_final;    // [B,H,V,K] acc, optional; empty: zeros
  View dout;        // [B,T,H,V] compute
  DeltaInputs in;   // v is not read
};
// All other gradients, parallel over chunks (KERNEL_MATH 6 and 7.1; T_zero is a cache, not an
// input).
struct DeltaChunkBackward {
  View dq, dk;    // [B,T,H,K] compute
  View dv;        // [B,T,H,V] compute
  View dbeta;     // [B,T,H] acc
  View dg;        // [B,T,H] acc
  View dout;      // [B,T,H,V] compute
  View S_enter;   // [B,NC,H,V,K] compute
  View dS_leave;  // [B,NC,H,V,K] compute
  DeltaInputs in;
};
// One token, in place: S <- e^g S, then S += beta (v - S k) k^T, then o = s S q (KERNEL_MATH 1).
struct DeltaStep {
  View o;        // [B,H,V] compute
  View S;        // [B,H,V,K] acc, read and written
  View q, k;     // [B,H,K] compute
  View v;        // [B,H,V] compute
  View beta, g;  // [B,H] acc
  double scale = 1;
};

// y = w o (x * rstd) o silu(gate) per head, rstd = (mean_v(x^2) + eps)^-1/2.
struct GatedRmsNormForward {
  View y;     // [M,H*V] compute
  View rstd;  // [M,H] acc; kept for backward
  View x;     // [M,H*V] compute
  View gate;  // [M,H*V] compute, columns
  View w;     // [V] acc, shared by the heads
  double eps = 1e-5;
};
struct GatedRmsNormBackward {  // KERNEL_MATH 10.7
  View dx;                     // [M,H*V] compute
  View dgate;                  // [M,H*V] compute, columns
  View dw;                     // [V] acc, added to
  View dy;                     // [M,H*V] compute
  View x;                      // [M,H*V] compute
  View gate;                   // [M,H*V] compute, columns
  View w;                      // [V] acc
  View rstd;                   // [M,H] acc
};

// y = silu(gate) o up.
struct SwigluForward {
  View y;         // [M,F] compute
  View gate, up;  // [M,F] compute, columns
};
struct SwigluBackward {
  View dgate, dup;  // [M,F] compute, columns
  View dy;          // [M,F] compute
  View gate, up;    // [M,F] compute, columns
};

// losses[m] = logsumexp_n(x[m].w[n]) - x[m].w[target[m]], in token chunks: the logits of the whole
// batch never exist. With dx and dw given, also the gradients of grad_scale * sum_m losses[m].
struct LmHeadLoss {
  View losses;   // [M] acc; 0 where target is -1
  View dx;       // [M,D] compute, optional
  View dw;       // [N,D] acc, added to; given exactly when dx is
  View x;        // [M,D] compute
  View w;        // [N,D] compute
  View targets;  // [M] i32, in [0, N) or -1: not a target
  double grad_scale = 0;
};

// norm = (sum g^2)^1/2 over a flat buffer, summed in a fixed order.
struct GradNorm {
  View norm;  // [1] f64
  View g;     // [n] acc
};

// A run of parameters inside the flat buffers that share their treatment.
struct AdamwSegment {
  int64_t first = 0, count = 0;
  bool decay = true;    // apply weight decay
  bool trained = true;  // false: left alone (no gradient in this mode), not even decayed
};
// AdamW (Loshchilov and Hutter 2019) with clipping by global norm: c = min(1, max_norm / (norm +
// 1e-6)),
//   m = b1 m + (1-b1) c g,  v = b2 v + (1-b2) (c g)^2,
//   w = w (1 - lr decay) - lr (m / (1 - b1^t)) / ((v / (1 - b2^t))^1/2 + eps).
struct Adamw {
  View w, m, v;  // [n] acc, updated
  View copy;     // [n] compute, optional: the updated weights in the compute type
  View g;        // [n] acc
  View norm;     // [1] f64, from GradNorm
  const AdamwSegment* segments = nullptr;
  int64_t segment_count = 0;
  double lr = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0.1;
  double max_norm = 0;  // 0: no clipping
  int64_t step = 1;     // t, counted from 1
};

namespace ops {

inline Op<EmbeddingForward> embedding_forward{"embedding_forward"};
inline Op<EmbeddingBackward> embedding_backward{"embedding_backward"};
inline Op<RmsNormForward> rms_norm_forward{"rms_norm_forward"};
inline Op<RmsNormBackward> rms_norm_backward{"rms_norm_backward"};
inline Op<MatmulForward> matmul_forward{"matmul_forward"};
inline Op<MatmulBackwardInput> matmul_backward_input{"matmul_backward_input"};
inline Op<MatmulBackwardWeight> matmul_backward_weight{"matmul_backward_weight"};
inline Op<MixerPrepForward> mixer_prep_forward{"mixer_prep_forward"};
inline Op<MixerPrepBackward> mixer_prep_backward{"mixer_prep_backward"};
inline Op<DeltaScanForward> delta_scan_forward{"delta_scan_forward"};
inline Op<DeltaReverseScan> delta_reverse_scan{"delta_reverse_scan"};
inline Op<DeltaChunkBackward> delta_chunk_backward{"delta_chunk_backward"};
inline Op<DeltaStep> delta_step{"delta_step"};
inline Op<GatedRmsNormForward> gated_rms_norm_forward{"gated_rms_norm_forward"};
inline Op<GatedRmsNormBackward> gated_rms_norm_backward{"gated_rms_norm_backward"};
inline Op<SwigluForward> swiglu_forward{"swiglu_forward"};
inline Op<SwigluBackward> swiglu_backward{"swiglu_backward"};
inline Op<LmHeadLoss> lm_head_loss{"lm_head_loss"};
inline Op<GradNorm> grad_norm{"grad_norm"};
inline Op<Adamw> adamw{"adamw"};

}  // namespace ops
}  // namespace kla
