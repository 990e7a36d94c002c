#include "kernels/cpu/panel_gemm.h"

#include "kernels/cpu/blocks.h"

namespace kla::cpu {
namespace {

// sgemm packs both operands anew in every call; panels of this size keep that below a twentieth of
// the work (measured: 256 x 512 reaches the rate of one big call, 64 x 512 four fifths of it).
constexpr int64_t kPanelRows = 256, kPanelColumns = 512;
constexpr int64_t kEnoughPanels = 32;

struct Panels {
  Blocks rows, columns;
  int64_t count() const { return rows.count() * columns.count(); }
};

// Smaller outputs are cut finer, down to half the panel each way, to have work for more threads.
Panels cut(int64_t m, int64_t n) {
  Panels panels{even_blocks(m, kPanelRows), even_blocks(n, kPanelColumns)};
  if (panels.count() < kEnoughPanels) panels.rows = even_blocks(m, kPanelRows / 2);
  if (panels.count() < kEnoughPanels) panels.columns = even_blocks(n, kPanelColumns / 2);
  return panels;
}

}  // namespace

void panel_gemm(Context& context, const PanelGemm& p) {
  const Panels panels = cut(p.m, p.n);
  const bool elsewhere = p.added.data != p.c.data;
  context.parallel(panels.count(), [&](int64_t task, int) {
    const int64_t r = task / panels.columns.count(), s = task % panels.columns.count();
    const int64_t i = panels.rows.first(r), j = panels.columns.first(s);
    const int64_t rows = panels.rows.length(r), columns = panels.columns.length(s);
    const Tile a{p.a.data + (p.form == Form::transposed_a ? i : i * p.a.ld), p.a.ld};
    const Tile b{p.b.data + (p.form == Form::transposed_b ? j * p.b.ld : j), p.b.ld};
    const MutableTile c{p.c.data + i * p.c.ld + j, p.c.ld};
    if (p.added.data && elsewhere) {
      const float* added = p.added.data + i * p.added.ld + j;
      for (int64_t x = 0; x < rows; ++x)
        std::copy(added + x * p.added.ld, added + x * p.added.ld + columns, c.data + x * c.ld);
    }
    gemm(p.form, rows, columns, p.k, a, b, p.added.data ? 1 : 0, c);
  });
}

}  // namespace kla::cpu
