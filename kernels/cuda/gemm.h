// The matrix product of the CUDA backend: cuBLASLt on a GPU (cublaslt.cpp), the CPU's product on
// `simt` (tests/simt/gemm.cpp).
#pragma once

#include "core/context.h"

namespace kla {

enum class GemmForm {
  plain,         // A B,   A [m,k], B [k,n]
  transposed_b,  // A B^T, A [m,k], B [n,k]
  transposed_a,  // A^T B, A [k,m], B [k,n]
};

// c = op(a, b) + added; operands bf16 or f32 alike, sums in f32, c and added f32 or the operands'
// type. All four may be column views; `added` may be absent, or c itself. The same shapes give the
// same bits.
struct Gemm {
  GemmForm form;
  View c, a, b, added;
};

namespace cuda {
void gemm(Context&, const Gemm&);
}
namespace simt {
void gemm(Context&, const Gemm&);
}

}  // namespace kla
