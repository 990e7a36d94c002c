// MixerTap: looks into the gated-delta mixers of a forward pass without the model knowing. While
// one is alive it observes the ops of a context and hands over the arguments of a layer's
// mixer_prep and delta_scan directly behind the scan. That is the one moment at which everything a
// mixer saves is complete and still there: under train.recompute it lies in scratch that the next
// layer reuses.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/ops.h"

namespace kla {

class MixerTap final : public OpObserver {
 public:
  // The views point into the device's memory and hold until `visit` returns. It may call ops; the
  // tap does not see those. In a dry run it is called too, with null data.
  using Visit =
      std::function<void(int64_t layer, const MixerPrepForward&, const DeltaScanForward&)>;

  // Layers are counted by their scans; those beyond `layers` (backward computing a forward again)
  // are not visited. An observer that the context has already goes on seeing every op.
  MixerTap(Context& context, int64_t layers, Visit visit);
  ~MixerTap();
  MixerTap(const MixerTap&) = delete;
  MixerTap& operator=(const MixerTap&) = delete;

  void begin(const OpBase&, const void* args) override;
  void end() override;

 private:
  Context& context_;
  OpObserver* before_;
  int64_t layers_, next_ = 0;
  Visit visit_;
  bool visiting_ = false, scanned_ = false;
  int depth_ = 0;  // of ops that call ops
  MixerPrepForward prep_;
  DeltaScanForward scan_;
};

// The values of a view of f64, f32 or bf16, columns too, row by row as doubles; none if it is
// empty.
std::vector<double> host_values(const Context&, const View&);

// Sequence b of a view of [B,...]: the view without its first dimension.
View sequence_of(const View&, int64_t b);

}  // namespace kla
