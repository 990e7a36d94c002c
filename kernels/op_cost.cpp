#include "kernels/op_cost.h"

#include <initializer_list>

#include "core/error.h"
#include "kernels/ops.h"

namespace kla {
namespace {

double number(int64_t n) {
  return static_cast<double>(n);
}

double moved(std::initializer_list<View> views) {
  double bytes = 0;
  for (const View& view : views)
    if (!view.empty()) bytes += number(view.bytes());
  return bytes;
}

std::string dims(std::initializer_list<int64_t> sizes) {
  std::string text;
  for (int64_t size : sizes) text += (text.empty() ? "" : "x") + std::to_string(size);
  return text;
}

OpCost elementwise(const View& shape, double bytes) {
  return {OpKind::elementwise, dims({shape.rows(), shape.cols()}), bytes, 0, {}};
}

OpCost product(std::vector<Product> products, double bytes) {
  const Product& first = products.front();
  OpCost cost{OpKind::product, dims({first.m, first.n, first.k}), bytes, 0, std::move(products)};
  for (const Product& p : cost.products) cost.flops += p.flops();
  return cost;
}

OpCost cost(const EmbeddingForward& a) {
  return elementwise(a.x, moved({a.x, a.x, a.tokens}));
}
OpCost cost(const EmbeddingBackward& a) {  // the rows touched are read and written
  return elementwise(a.dx, moved({a.dx, a.dx, a.dx, a.tokens}));
}

OpCost cost(const RmsNormForward& a) {
  return elementwise(a.x, moved({a.x, a.y, a.w, a.rstd}));
}
OpCost cost(const RmsNormBackward& a) {
  return elementwise(a.x,
                     moved({a.dx, a.dx_copy, a.dresidual, a.dy, a.x, a.w, a.dw, a.dw, a.rstd}));
}

OpCost cost(const MatmulForward& a) {
  return product({{Product::Form::forward, a.x.rows(), a.w.rows(), a.w.cols()}},
                 moved({a.y, a.x, a.w, a.residual}));
}
OpCost cost(const MatmulBackwardInput& a) {
  return product({{Product::Form::input, a.dy.rows(), a.w.cols(), a.w.rows()}},
                 moved({a.dx, a.dy, a.w}));
}
OpCost cost(const MatmulBackwardWeight& a) {
  return product({{Product::Form::weight, a.dw.rows(), a.dw.cols(), a.x.rows()}},
                 moved({a.dw, a.dw, a.dy, a.x}));
}

OpCost cost(const LmHeadLoss& a) {
  const int64_t M = a.x.rows(), N = a.w.rows(), D = a.w.cols();
  std::vector<Product> products{{Product::Form::forward, M, N, D}};
  if (!a.dx.empty()) {
    products.push_back({Product::Form::input, M, D, N});
    products.push_back({Product::Form::weight, N, D, M});
  }
  return product(std::move(products), moved({a.x, a.w, a.dx, a.dw, a.dw, a.losses, a.targets}));
}

// Shapes of a gated-delta mixer: tokens times heads, and the two head widths.
struct Heads {
  int64_t B, T, H, K, V;
  explicit Heads(const View& q, const View& v)
      : B(q.dim(0)), T(q.dim(1)), H(q.dim(2)), K(q.dim(3)), V(v.dim(3)) {}
  OpCost cost(double flops_per_token_and_head, double bytes) const {
    return {OpKind::mixer,
            dims({B, T, H, K, V}),
            bytes,
            number(B * T * H) * flops_per_token_and_head,
            {}};
  }
};

// K K^T below the diagonal and the inverse of the unit lower triangle.
OpCost cost(const MixerPrepForward& a) {
  const Heads heads(a.q_hat, a.v_hat);
  const double flops = a.T_zero.empty() ? 0 : number(kChunk * heads.K + kChunk * kChunk / 3);
  return heads.cost(flops, moved({a.q_hat, a.k_hat, a.v_hat, a.beta, a.g, a.T_zero, a.in.q, a.in.k,
                                  a.in.v, a.in.a, a.in.b}));
}
OpCost cost(const MixerPrepBackward& a) {
  return Heads(a.dq_hat, a.dv_hat)
      .cost(0, moved({a.dq, a.dk, a.dv, a.da, a.db, a.dq_hat, a.dk_hat, a.dv_hat, a.dbeta, a.dg,
                      a.in.q, a.in.k, a.in.v, a.in.a, a.in.b}));
}

// K S^T, Q S^T and the write; Q K^T, T (beta Y) and P X on triangles.
double scan_flops(const Heads& h) {
  return number(6 * h.K * h.V + kChunk * h.K + 2 * kChunk * h.V);
}
OpCost cost(const DeltaScanForward& a) {
  const Heads heads(a.in.q, a.in.v);
  return heads.cost(scan_flops(heads), moved({a.o, a.S_enter, a.S_final, a.S_initial, a.in.q,
                                              a.in.k, a.in.v, a.in.beta, a.in.g, a.in.T_zero}));
}
OpCost cost(const DeltaReverseScan& a) {
  const Heads heads(a.in.q, a.dout);
  return heads.cost(scan_flops(heads), moved({a.dS_leave, a.dS_initial, a.dS_final, a.dout, a.in.q,
                                              a.in.k, a.in.beta, a.in.g, a.in.T_zero}));
}
// Five products with a state, ten on triangles (KERNEL_MATH 6).
OpCost cost(const DeltaChunkBackward& a) {
  const Heads heads(a.in.q, a.in.v);
  const double flops = number(10 * heads.K * heads.V + 5 * kChunk * (heads.K + heads.V));
  return heads.cost(flops, moved({a.dq, a.dk, a.dv, a.dbeta, a.dg, a.dout, a.S_enter, a.dS_leave,
                                  a.in.q, a.in.k, a.in.v, a.in.beta, a.in.g, a.in.T_zero}));
}
OpCost cost(const DeltaStep& a) {
  const int64_t B = a.S.dim(0), H = a.S.dim(1), V = a.S.dim(2), K = a.S.dim(3);
  return {OpKind::mixer,
          dims({B, H, K, V}),
          moved({a.S, a.S, a.o, a.q, a.k, a.v}),
          number(6 * B * H * K * V),
          {}};
}

OpCost gated(OpCost c) {
  c.kind = OpKind::mixer;
  return c;
}
OpCost cost(const GatedRmsNormForward& a) {
  return gated(elementwise(a.x, moved({a.y, a.rstd, a.x, a.gate, a.w})));
}
OpCost cost(const GatedRmsNormBackward& a) {
  return gated(elementwise(a.x, moved({a.dx, a.dgate, a.dy, a.x, a.gate, a.w, a.rstd})));
}

OpCost cost(const SwigluForward& a) {
  return elementwise(a.y, moved({a.y, a.gate, a.up}));
}
OpCost cost(const SwigluBackward& a) {
  return elementwise(a.dy, moved({a.dgate, a.dup, a.dy, a.gate, a.up}));
}

OpCost cost(const GradNorm& a) {
  return {OpKind::update, dims({a.g.size()}), moved({a.g}), 0, {}};
}
OpCost cost(const Adamw& a) {
  return {OpKind::update,
          dims({a.w.size()}),
          moved({a.w, a.w, a.m, a.m, a.v, a.v, a.g, a.copy}),
          0,
          {}};
}

struct Entry {
  const OpBase* op;
  OpCost (*cost)(const void*);
};
template <class Args>
Entry entry(const Op<Args>& op) {
  return {&op, [](const void* args) { return cost(*static_cast<const Args*>(args)); }};
}

}  // namespace

const char* name_of(OpKind kind) {
  switch (kind) {
    case OpKind::product:
      return "product";
    case OpKind::mixer:
      return "mixer";
    case OpKind::elementwise:
      return "elementwise";
    case OpKind::update:
      return "update";
  }
  return "?";
}

OpCost cost_of(const OpBase& op, const void* args) {
  static const Entry entries[] = {entry(ops::embedding_forward),
                                  entry(ops::embedding_backward),
                                  entry(ops::rms_norm_forward),
                                  entry(ops::rms_norm_backward),
                                  entry(ops::matmul_forward),
                                  entry(ops::matmul_backward_input),
                                  entry(ops::matmul_backward_weight),
                                  entry(ops::mixer_prep_forward),
                                  entry(ops::mixer_prep_backward),
                                  entry(ops::delta_scan_forward),
                                  entry(ops::delta_reverse_scan),
                                  entry(ops::delta_chunk_backward),
                                  entry(ops::delta_step),
                                  entry(ops::gated_rms_norm_forward),
                                  entry(ops::gated_rms_norm_backward),
                                  entry(ops::swiglu_forward),
                                  entry(ops::swiglu_backward),
                                  entry(ops::lm_head_loss),
                                  entry(ops::grad_norm),
                                  entry(ops::adamw)};
  for (const Entry& e : entries)
    if (e.op == &op) return e.cost(args);
  check_failed("cost_of", __FILE__, __LINE__, std::string("op '") + op.name() + "' has no cost");
}

}  // namespace kla
