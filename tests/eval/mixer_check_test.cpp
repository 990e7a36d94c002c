// The check of a trained run's mixers: it passes where the kernels are right, and every planted
// fault, small ones too, is noticed in the columns it belongs to.
#include "eval/mixer_check.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <memory>

#include "core/philox.h"
#include "tests/model/model_fixture.h"
#include "tests/support/compare.h"

namespace kla::testing {
namespace {

constexpr int64_t kText = 150;  // two chunks and a short one

// Damages tensors behind an op, as a wrong kernel would.
class Saboteur final : public OpObserver {
 public:
  using Damage = std::function<void(const OpBase&, const void*)>;
  explicit Saboteur(Damage damage) : damage_(std::move(damage)) {}
  void begin(const OpBase& op, const void* args) override {
    op_ = &op;
    args_ = args;
  }
  void end() override { damage_(*op_, args_); }

 private:
  Damage damage_;
  const OpBase* op_ = nullptr;
  const void* args_ = nullptr;
};

struct Checked {
  Runtime runtime;
  LanguageModel model;
  Weights weights;
  int64_t text;
  std::unique_ptr<MixerCheck> check;

  explicit Checked(const ModelConfig& config, Device device = Device::cpu,
                   DType compute = DType::f32, int64_t length = kText)
      : runtime(device, 2, compute), model(config), text(length) {
    runtime.set_up(
        [&] {
          weights = runtime.allocate_weights(model.parameters());
          check =
              std::make_unique<MixerCheck>(runtime, model, weights, config.num_hidden_layers, text);
        },
        [&] { check->plan(); });
    initialize(runtime.context, weights, 5);
  }

  std::vector<LayerCheck> run(bool resets = false) {
    const RandomStream random(3, "text");
    std::vector<int32_t> tokens(static_cast<size_t>(text));
    for (size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = static_cast<int32_t>(random.bits(i) % 32);
    std::vector<uint8_t> reset;
    if (resets) {
      reset.assign(kText, 0);
      reset[33] = reset[64] = reset[100] = 1;
    }
    return check->run(tokens, reset);
  }

  std::vector<LayerCheck> run_with(const Saboteur::Damage& damage) {
    Saboteur saboteur(damage);
    runtime.context.observer = &saboteur;
    std::vector<LayerCheck> layers = run();
    runtime.context.observer = nullptr;
    return layers;
  }
};

const CheckBounds kBounds = check_bounds(DType::f32);

TEST(MixerCheck, PassesWhatIsRight) {
  for (const char* rule : {"kla", "gdn", "longhorn", "deltanet", "seq_only", "learned_scalar"})
    for (bool resets : {false, true}) {
      Checked checked(small_config(rule));
      const std::vector<LayerCheck> layers = checked.run(resets);
      ASSERT_EQ(layers.size(), 2u) << rule;
      EXPECT_TRUE(checked.runtime.memory.as_planned());
      for (const LayerCheck& c : layers) {
        EXPECT_LE(worst_ratio(c, kBounds), 1) << rule << ", layer " << c.layer;
        for (double error : {c.chunkwise, c.recurrent, c.between, c.definition})
          EXPECT_GT(error, 0) << "two computations that round differently cannot agree exactly";
      }
    }
}

TEST(MixerCheck, HoldsTheReferenceDeviceToDoublePrecision) {
  Checked checked(small_config(), Device::reference);
  for (const LayerCheck& c : checked.run())
    EXPECT_LE(worst_ratio(c, check_bounds(DType::f64)), 1) << c.layer;
}

TEST(MixerCheck, PassesOnEveryDeviceInEveryType) {
  ModelConfig config = small_config();
  config.num_hidden_layers = 1;
  config.key_head_dim = config.value_head_dim = 16;
  for (Device device : devices_under_test())
    for (DType compute : compute_types(device)) {
      Checked checked(config, device, compute, 70);
      for (const LayerCheck& c : checked.run())
        EXPECT_LE(worst_ratio(c, check_bounds(compute)), 1)
            << name_of(device) << " in " << name_of(compute) << ": " << c.chunkwise << ", "
            << c.recurrent << ", " << c.between << ", " << c.definition;
    }
}

// The chunkwise calls only: those that make T_zero, which a single token does not.
void damage_prep(const OpBase& op, const void* args,
                 const std::function<void(const MixerPrepForward&)>& damage) {
  if (&op != &ops::mixer_prep_forward) return;
  const auto& prep = *static_cast<const MixerPrepForward*>(args);
  if (!prep.T_zero.empty()) damage(prep);
}

TEST(MixerCheck, NoticesAWrongInverse) {
  Checked checked(small_config());
  const auto layers = checked.run_with([](const OpBase& op, const void* args) {
    damage_prep(op, args, [](const MixerPrepForward& prep) {
      float* T = prep.T_zero.as<float>();
      for (int64_t i = 0; i < prep.T_zero.size(); ++i) T[i] *= 1.001f;
    });
  });
  for (const LayerCheck& c : layers) {
    EXPECT_GT(c.chunkwise, kBounds.device);
    EXPECT_GT(c.between, kBounds.between);
    EXPECT_LE(c.recurrent, kBounds.device);
    EXPECT_LE(c.definition, kBounds.definition);
    EXPECT_GT(worst_ratio(c, kBounds), 1);
  }
}

TEST(MixerCheck, NoticesAWrongDecayOfOneToken) {
  Checked checked(small_config());
  const auto layers = checked.run_with([](const OpBase& op, const void* args) {
    damage_prep(op, args, [](const MixerPrepForward& prep) {
      prep.g.as<float>()[2 * 70] -= 0.05f;  // of one head
    });
  });
  for (const LayerCheck& c : layers) {
    EXPECT_GT(c.chunkwise, kBounds.device);
    EXPECT_LE(c.recurrent, kBounds.device);
    EXPECT_GT(worst_ratio(c, kBounds), 1);
  }
}

TEST(MixerCheck, NoticesAWrongDecodingStep) {
  Checked checked(small_config());
  int64_t step = 0;
  const auto layers = checked.run_with([&](const OpBase& op, const void* args) {
    if (&op == &ops::delta_step && ++step == 20)  // in the first layer
      static_cast<const DeltaStep*>(args)->S.as<float>()[7] += 0.01f;
  });
  EXPECT_GT(layers[0].recurrent, kBounds.device);
  EXPECT_LE(layers[0].chunkwise, kBounds.device);
  EXPECT_GT(worst_ratio(layers[0], kBounds), 1);
  EXPECT_LE(worst_ratio(layers[1], kBounds), 1);
}

TEST(MixerCheck, NoticesANaN) {
  Checked checked(small_config());
  const auto layers = checked.run_with([](const OpBase& op, const void* args) {
    if (&op == &ops::delta_scan_forward)
      static_cast<const DeltaScanForward*>(args)->o.as<float>()[11] = std::nanf("");
  });
  EXPECT_FALSE(worst_ratio(layers[0], kBounds) <= 1);
}

}  // namespace
}  // namespace kla::testing
