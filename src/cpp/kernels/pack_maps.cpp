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
  // Words before strips: of few channels at once the cache and the table of pages hold what is read.
  parallel_for(batch * words, 1 + 2048 / (places + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / words, w = i % words, left = channels - 32 * w;
      for (int64_t strip = 0; strip < strips; ++strip) {
        const int64_t first = strip * kPlaces;
        const int64_t count = places - first < kPlaces ? places - first : kPlaces;
        word(image, first, count, 32 * w, left < 0 ? 0 : left < 32 ? left : 32, w);
      }
    }
  });
}

// Bit c of bits[i] is whether x[c][i] >= 0.
void signs_of_places(const float* x, int64_t places, int64_t count, int64_t depth, uint32_t* bits) {
#if defined(__AVX512F__)
  const __mmask16 in = static_cast<__mmask16>((1u << count) - 1);
  __m512i found = _mm512_setzero_si512();
  for (int64_t c = 0; c < depth; ++c, x += places) {
    const __mmask16 sign = _mm512_cmp_ps_mask(_mm512_maskz_loadu_ps(in, x), _mm512_setzero_ps(), _CMP_GE_OQ);
    found = _mm512_mask_or_epi32(found, sign, found, _mm512_set1_epi32(static_cast<int>(1u << c)));
  }
  _mm512_store_si512(bits, found);
#else
#if defined(__AVX2__)
  if (count == kPlaces) {
    __m256i low = _mm256_setzero_si256(), high = low;
    for (int64_t c = 0; c < depth; ++c, x += places) {
      const __m256 bit = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(1u << c))), none = _mm256_setzero_ps();
      const __m256 a = _mm256_and_ps(bit, _mm256_cmp_ps(_mm256_loadu_ps(x), none, _CMP_GE_OQ));
      const __m256 b = _mm256_and_ps(bit, _mm256_cmp_ps(_mm256_loadu_ps(x + 8), none, _CMP_GE_OQ));
      low = _mm256_or_si256(low, _mm256_castps_si256(a));
      high = _mm256_or_si256(high, _mm256_castps_si256(b));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bits), low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bits + 8), high);
    return;
  }
#endif
  for (int64_t c = 0; c < depth; ++c, x += places) {
    for (int64_t i = 0; i < count; ++i) bits[i] |= static_cast<uint32_t>(x[i] >= 0.0f) << c;
  }
#endif
}

// The mean of |x| over the channels, for up to 256 places.
void mean_of_places(const float* __restrict x, int64_t places, int64_t count, int64_t channels, float part,
                    float* __restrict mean) {
  float sum[256] = {};
  for (int64_t c = 0; c < channels; ++c, x += places) {
    for (int64_t i = 0; i < count; ++i) sum[i] += __builtin_fabsf(x[i]);
  }
  for (int64_t i = 0; i < count; ++i) mean[i] = sum[i] * part;
}

}  // namespace

// Signs, 1 from 0 on. `magnitude` (may be null) becomes the mean of |x| over the channels: [batch][places].
void pack_signs_nchw(const float* x, int32_t* packed, float* magnitude, int64_t batch, int64_t channels, int64_t places,
                     int64_t words) {
  each_word(batch, channels, places, words, [&](int64_t n, int64_t first, int64_t count, int64_t from, int64_t depth,
                                                int64_t w) {
    alignas(64) uint32_t bits[kPlaces] = {};
    signs_of_places(x + (n * channels + from) * places + first, places, count, depth, bits);
    uint32_t* to = reinterpret_cast<uint32_t*>(packed) + (n * places + first) * words + w;
    for (int64_t i = 0; i < count; ++i) to[i * words] = bits[i];
  });
  if (magnitude == nullptr) return;
  const float part = 1.0f / static_cast<float>(channels);
  parallel_for(batch * ((places + 255) / 256), 1 + 256 / channels, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = i / ((places + 255) / 256), first = i % ((places + 255) / 256) * 256;
      mean_of_places(x + n * channels * places + first, places, places - first < 256 ? places - first : 256, channels,
                     part, magnitude + n * places + first);
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
