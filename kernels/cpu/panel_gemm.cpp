#include "kernels/cpu/panel_gemm.h"

#include "kernels/cpu/blocks.h"

namespace kla::cpu {
namespace {

// sgemm packs both operands anew in every call; 256 x 512 outputs a call reach the rate of one big
// call, 128 x 256 fall a tenth to a third behind (measured), so outputs are cut finer only where
// there would be work for very few threads.
constexpr int64_t kPanelRows = 256, kPanelColumns = 512;
constexpr int64_t kEnoughPanels = 8;

struct Panels {
  Blocks rows, columns;
  int64_t count() const { return rows.count() * columns.count(); }
};

// Down to half a panel each way.
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
