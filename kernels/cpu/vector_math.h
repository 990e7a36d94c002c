// The exponential family on Google Highway vectors. Included once per instruction set, like
// vector.h. Every function lets NaN through: a diverging run must be seen, not hidden (hn::Exp
// returns 0).
#if defined(KLA_KERNELS_CPU_VECTOR_MATH_H) == defined(HWY_TARGET_TOGGLE)
#ifdef KLA_KERNELS_CPU_VECTOR_MATH_H
#undef KLA_KERNELS_CPU_VECTOR_MATH_H
#else
#define KLA_KERNELS_CPU_VECTOR_MATH_H
#endif

#include "hwy/highway.h"
#include "kernels/cpu/vector.h"

HWY_BEFORE_NAMESPACE();
namespace kla::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// e^x for any x: x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial for e^r, and 2^n in two factors,
// so that results below the normal range and infinity come out right. Error at most 1 ulp or so.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp(D d, V x) {
  const hn::RebindToSigned<D> di;
  // The bound stands first in Min and Max: on x86 these return their second operand if one is NaN.
  x = hn::Max(hn::Set(d, -104.0f), hn::Min(hn::Set(d, 89.0f), x));
  const auto n = hn::NearestInt(hn::Mul(x, hn::Set(d, 1.44269504f)));
  const V nf = hn::ConvertTo(d, n);
  V r = hn::NegMulAdd(nf, hn::Set(d, 0.693145752f), x);  // ln 2 in two parts, the first exact
  r = hn::NegMulAdd(nf, hn::Set(d, 1.42860682e-6f), r);
  V p = hn::Set(d, 1.0f / 5040);
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 720));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 120));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 24));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0f / 6));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5f));
  p = hn::MulAdd(hn::Mul(p, r), r, hn::Add(r, hn::Set(d, 1.0f)));
  const auto bias = hn::Set(di, 127);
  const auto half = hn::ShiftRight<1>(n);
  const V low = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(half, bias)));
  const V high = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(hn::Sub(n, half), bias)));
  return hn::Mul(hn::Mul(p, low), high);
}

// 1 / (1 + e^-x).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V logistic(D d, V x) {
  const V one = hn::Set(d, 1.0f);
  return hn::Div(one, hn::Add(one, exp(d, hn::Neg(x))));
}

// silu(x) = x logistic(x), and its derivative s (1 + x (1 - s)) with s = logistic(x).
template <class V>
struct ValueAndSlope {
  V value, slope;
};
template <class D, class V = hn::Vec<D>>
HWY_INLINE ValueAndSlope<V> silu(D d, V x) {
  const V one = hn::Set(d, 1.0f), s = logistic(d, x);
  return {hn::Mul(x, s), hn::Mul(s, hn::MulAdd(x, hn::Sub(one, s), one))};
}

}  // namespace kla::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
