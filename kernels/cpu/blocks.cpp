#include "kernels/cpu/blocks.h"

namespace kla::cpu {

void add_partial_sums(Context& context, const View& partial, const View& sum) {
  const Blocks columns{partial.cols(), 64};
  context.parallel(columns.count(), [&](int64_t task, int) {
    const int64_t first = columns.first(task), count = columns.length(task);
    float total[64] = {};
    for (int64_t r = 0; r < partial.rows(); ++r)
      for (int64_t i = 0; i < count; ++i) total[i] += row(partial, r)[first + i];
    for (int64_t i = 0; i < count; ++i) sum.as<float>()[first + i] += total[i];
  });
}

}  // namespace kla::cpu
