#include "kernels/cpu/mixer_tokens.h"

#include <cstring>

namespace kla::cpu {

Documents::Documents(const MixerInputs& in, int64_t b, int64_t tokens) : T(tokens) {
  if (!in.reset.empty()) reset = in.reset.as<uint8_t>() + b * T;
  if (!in.position.empty()) before = in.position.as<int64_t>()[b];
}

int64_t Documents::position(int64_t t) const {
  const void* start = reset ? memrchr(reset, 1, static_cast<size_t>(t + 1)) : nullptr;
  return start ? reset + t + 1 - static_cast<const uint8_t*>(start) : before + t + 1;
}

int64_t Documents::past(int64_t t) const {
  int64_t taps = 0;
  while (taps < kConvTail && !starts(t - taps)) ++taps;
  return taps;
}

ConvChannels query_channels(const MixerShape& s, const MixerInputs& in, const View& w) {
  return {in.q, in.conv_tail, s.K, 0, w};
}
ConvChannels key_channels(const MixerShape& s, const MixerInputs& in, const View& w) {
  return {in.k, in.conv_tail, s.K, s.H * s.K, w};
}
ConvChannels value_channels(const MixerShape& s, const MixerInputs& in, const View& w) {
  return {in.v, in.conv_tail, s.V, 2 * s.H * s.K, w};
}

void find_taps(const MixerShape& s, const ConvChannels& channels, const Documents& documents,
               int64_t b, int64_t t, int64_t h, int64_t rows, const float* zeros, TapRows* taps) {
  const float* x = channels.x.as<float>() + h * channels.width;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t past = documents.past(t + i);
    for (int64_t back = 0; back < kConvWidth; ++back) {
      const int64_t source = t + i - back;
      const float*& row = taps[i][static_cast<size_t>(kConvTail - back)];
      if (back > past || (source < 0 && channels.tail.empty()))
        row = zeros;
      else if (source >= 0)
        row = x + (b * s.T + source) * channels.x.stride;
      else
        row = channels.tail.as<float>() +
              (b * kConvTail + kConvTail + source) * channels.tail.stride + channels.first +
              h * channels.width;
    }
  }
}

void transpose_taps(const ConvChannels& channels, int64_t h, float* w) {
  const float* from = channels.w.as<float>() + h * channels.width * channels.w.stride;
  for (int64_t j = 0; j < channels.width; ++j)
    for (int64_t i = 0; i < kConvWidth; ++i)
      w[i * channels.width + j] = from[j * channels.w.stride + i];
}

}  // namespace kla::cpu
