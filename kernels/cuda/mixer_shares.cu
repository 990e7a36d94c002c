#include "kernels/cuda/mixer_shares.cuh"

namespace kla::KLA_BACKEND {

namespace {

struct Totals {
  int H, rows;  // shares of each head
  Share share;
  const float* shares;  // [rows, H, share.floats()]
  float *q_conv, *k_conv, *v_conv, *b_bias, *a_log, *a_bias, *theta;
  const float* logit;  // theta itself
  bool shared_theta;   // one for all heads

  // Where column `i` of head h is added to, or null.
  __device__ float* target(int h, int i) const {
    const int keys = 4 * share.K, values = 4 * share.V;
    if (i < keys) return q_conv + h * keys + i;
    if (i < 2 * keys) return k_conv + h * keys + i - keys;
    if (i < share.scalars()) return v_conv + h * values + i - 2 * keys;
    switch (i - share.scalars()) {
      case kBBias:
        return b_bias ? b_bias + h : nullptr;
      case kALog:
        return a_log ? a_log + h : nullptr;
      case kABias:
        return a_bias ? a_bias + h : nullptr;
      default:
        if (!theta || (shared_theta && h > 0)) return nullptr;
        return theta + (shared_theta ? 0 : h);
    }
  }
};

constexpr int kSumColumns = 32, kSumRows = 8;

// Grid (columns / 32, H), 8 rows of threads: each adds every eighth share, then the eight are
// added.
__global__ void sum_shares_kernel(const __grid_constant__ Totals p) {
  SharedMemory shared;
  double* sums = shared.array<double>(kSumColumns * kSumRows);
  const int column = static_cast<int>(threadIdx.x) % kSumColumns;
  const int row = static_cast<int>(threadIdx.x) / kSumColumns, h = static_cast<int>(blockIdx.y);
  const int i = static_cast<int>(blockIdx.x) * kSumColumns + column, width = p.share.floats();
  const bool is_theta = i == p.share.scalars() + kTheta, all_heads = is_theta && p.shared_theta;
  double sum = 0;
  if (i < width) {
    const int count = all_heads ? p.rows * p.H : p.rows;
    const int64_t stride = all_heads ? width : static_cast<int64_t>(p.H) * width;
    const float* from = p.shares + (all_heads ? 0 : static_cast<int64_t>(h) * width) + i;
    for (int share = row; share < count; share += kSumRows) sum += from[share * stride];
  }
  sums[row * kSumColumns + column] = sum;
  __syncthreads();
  if (row > 0 || i >= width) return;
  for (int other = 1; other < kSumRows; ++other) sum += sums[other * kSumColumns + column];
  float* to = p.target(h, i);
  if (!to) return;
  if (is_theta) sum *= sigmoid(p.logit[p.shared_theta ? 0 : h]);  // of softplus
  *to += static_cast<float>(sum);
}

float* dense_pointer(const View& view) {
  KLA_CHECK(view.empty() || view.dense(), view.describe());
  return pointer<float>(view);
}

}  // namespace

void add_shares(const Context& context, const MixerPrepBackward& x, const MixerDims& s, int rows,
                const float* shares) {
  const RuleInfo& rule = rule_info(x.options.rule);
  const bool mamba = x.options.decay == DecayGate::dual_mamba;
  const Totals totals{s.H,
                      rows,
                      {s.K, s.V},
                      shares,
                      dense_pointer(x.dw.q_conv),
                      dense_pointer(x.dw.k_conv),
                      dense_pointer(x.dw.v_conv),
                      pointer<float>(x.dw.b_bias),
                      mamba ? pointer<float>(x.dw.a_log) : nullptr,
                      pointer<float>(x.dw.a_bias),
                      rule.scalar != LearnedScalar::none ? pointer<float>(x.dw.theta) : nullptr,
                      pointer<float>(x.w.theta),
                      rule.scalar == LearnedScalar::per_layer};
  const auto columns =
      static_cast<unsigned>((totals.share.floats() + kSumColumns - 1) / kSumColumns);
  launch(context, sum_shares_kernel,
         {dim3(columns, static_cast<unsigned>(s.H)), kSumColumns * kSumRows,
          SharedSize().array<double>(kSumColumns * kSumRows).bytes()},
         totals);
}

}  // namespace kla::KLA_BACKEND
