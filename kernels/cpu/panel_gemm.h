// The big matrix products: oneDNN's sgemm, single-threaded, on panels of the output. The panels
// depend on the shape only, so the bits do not depend on the number of threads (oneDNN's own
// partition changes them), and no two tasks share an element of the output.
#pragma once

#include "core/context.h"
#include "kernels/cpu/tile_gemm.h"

namespace kla::cpu {

inline Tile tile(const View& view) {
  return {view.as<float>(), view.stride};
}
inline MutableTile mutable_tile(const View& view) {
  return {view.as<float>(), view.stride};
}

// One product for all threads of the pool, shapes as in Form: c[m,n] = op(a, b) + added.
struct PanelGemm {
  Form form;
  int64_t m, n, k;
  Tile a, b;
  MutableTile c;
  Tile added{nullptr, 0};  // [m,n], optional; may be c itself
};
void panel_gemm(Context& context, const PanelGemm& product);

}  // namespace kla::cpu
