// Maps of numbers as maps of bits: [batch][channels][places] or [batch][places][channels] to [batch][places][words], with
// 32 channels a word.
#include "bits.h"

namespace lilliput {
namespace LILLIPUT_ISA {
namespace {

constexpr int kPlaces = 16;

// Calls word(image, first place, places, first channel, channels, which word) for pieces of kPlaces places and 32 channels.
template <typename F>
void each_word(int64_t batch, int64_t channels, int64_t places, int64_t words, const F& word) {
  const int64_t strips = (places + kPlaces - 1) / kPlaces;
  parallel_for(batch * strips, 1 + 2048 / (channels + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / strips, first = i % strips * kPlaces;
      const int64_t count = places - first < kPlaces ? places - first : kPlaces;
      for (int64_t w = 0; w < words; ++w) {
        const int64_t left = channels - 32 * w;
        word(image, first, count, 32 * w, left < 0 ? 0 : left < 32 ? left : 32, w);
      }
    }
  });
}

}  // namespace

// Signs, 1 from 0 on. `magnitude` (may be null) becomes the mean of |x| over the channels: [batch][places].
void pack_signs_nchw(const float* x, int32_t* packed, float* magnitude, int64_t batch, int64_t channels, int64_t places,
                     int64_t words) {
  each_word(batch, channels, places, words, [&](int64_t n, int64_t first, int64_t count, int64_t from, int64_t depth,
                                                int64_t w) {
    uint32_t bits[kPlaces] = {};
    float sum[kPlaces] = {};
    const float* source = x + (n * channels + from) * places + first;
    float* mean = magnitude == nullptr ? nullptr : magnitude + n * places + first;
    if (count == kPlaces && mean == nullptr) {
      for (int64_t c = 0; c < depth; ++c, source += places) {
        for (int i = 0; i < kPlaces; ++i) bits[i] |= source[i] >= 0.0f ? uint32_t{1} << c : 0;
      }
    } else {
      for (int64_t c = 0; c < depth; ++c, source += places) {
        for (int64_t i = 0; i < count; ++i) {
          bits[i] |= source[i] >= 0.0f ? uint32_t{1} << c : 0;
          sum[i] += source[i] < 0.0f ? -source[i] : source[i];
        }
      }
    }
    uint32_t* to = reinterpret_cast<uint32_t*>(packed) + (n * places + first) * words + w;
    for (int64_t i = 0; i < count; ++i) to[i * words] = bits[i];
    if (mean != nullptr) {
      const float part = 1.0f / static_cast<float>(channels);
      for (int64_t i = 0; i < count; ++i) mean[i] = (w == 0 ? 0.0f : mean[i]) + sum[i] * part;
    }
  });
}

void pack_signs_nhwc(const float* x, int32_t* packed, float* magnitude, int64_t rows, int64_t channels, int64_t words) {
  parallel_for(rows, 1 + 65536 / (channels + 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      uint32_t* to = reinterpret_cast<uint32_t*>(packed) + row * words;
      const float* source = x + row * channels;
      pack_signs(source, channels, to);
      for (int64_t k = (channels + 31) / 32; k < words; ++k) to[k] = 0;
      if (magnitude == nullptr) continue;
      float sums[16] = {};
      int64_t c = 0;
      for (; c + 16 <= channels; c += 16) {
        for (int i = 0; i < 16; ++i) sums[i] += source[c + i] < 0.0f ? -source[c + i] : source[c + i];
      }
      for (; c < channels; ++c) sums[0] += source[c] < 0.0f ? -source[c] : source[c];
      for (int i = 1; i < 16; ++i) sums[0] += sums[i];
      magnitude[row] = sums[0] / static_cast<float>(channels);
    }
  });
}

// Codes as planes of bits, [planes][batch][places][words], plane p being bit p of the code.
void pack_planes_nchw(const uint8_t* x, int32_t* packed, int64_t planes, int64_t batch, int64_t channels, int64_t places,
                      int64_t words) {
  each_word(batch, channels, places, words, [&](int64_t n, int64_t first, int64_t count, int64_t from, int64_t depth,
                                                int64_t w) {
    for (int64_t plane = 0; plane < planes; ++plane) {
      uint32_t bits[kPlaces] = {};
      const uint8_t* source = x + (n * channels + from) * places + first;
      for (int64_t c = 0; c < depth; ++c, source += places) {
        if (count == kPlaces) {
          for (int i = 0; i < kPlaces; ++i) bits[i] |= static_cast<uint32_t>(source[i] >> plane & 1) << c;
        } else {
          for (int64_t i = 0; i < count; ++i) bits[i] |= static_cast<uint32_t>(source[i] >> plane & 1) << c;
        }
      }
      uint32_t* to = reinterpret_cast<uint32_t*>(packed) + ((plane * batch + n) * places + first) * words + w;
      for (int64_t i = 0; i < count; ++i) to[i * words] = bits[i];
    }
  });
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput

LILLIPUT_KERNEL(pack_signs_nchw)
LILLIPUT_KERNEL(pack_signs_nhwc)
LILLIPUT_KERNEL(pack_planes_nchw)
