// Maps of numbers as maps of bits: [batch][channels][places] or [batch][places][channels] to [batch][places][words], with
// 32 channels a word.
#include "pack_maps.h"

namespace lilliput {
namespace LILLIPUT_ISA {
namespace {

constexpr int kPlaces = 16;
constexpr int64_t kPiece = 512;  // places whose channels are read 32 at a time: the cache and the table of pages hold them

// Calls word(image, first place, places, first channel, channels, which word) for strips of kPlaces places and 32 channels.
template <typename F>
void each_word(int64_t batch, int64_t channels, int64_t places, int64_t words, const F& word) {
  const int64_t pieces = (places + kPiece - 1) / kPiece;
  parallel_for(batch * pieces, 1 + 4096 / (channels + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / pieces, from = i % pieces * kPiece, to = places - from < kPiece ? places : from + kPiece;
      for (int64_t w = 0; w < words; ++w) {
        const int64_t left = channels - 32 * w, depth = left < 0 ? 0 : left < 32 ? left : 32;
        for (int64_t first = from; first < to; first += kPlaces) {
          word(image, first, to - first < kPlaces ? to - first : kPlaces, 32 * w, depth, w);
        }
      }
    }
  });
}

// Bit c of bits[i] is whether x[c][i] >= 0; sums[i], if wanted, grows by |x[c][i]|.
template <bool Sums>
void signs_of_places(const float* x, int64_t places, int64_t count, int64_t depth, uint32_t* bits, float* sums) {
#if defined(__AVX512F__)
  const __mmask16 in = static_cast<__mmask16>((1u << count) - 1);
  __m512i found = _mm512_setzero_si512();
  __m512 sum = Sums ? _mm512_maskz_loadu_ps(in, sums) : _mm512_setzero_ps();
  for (int64_t c = 0; c < depth; ++c, x += places) {
    const __m512 value = _mm512_maskz_loadu_ps(in, x);
    const __mmask16 sign = _mm512_cmp_ps_mask(value, _mm512_setzero_ps(), _CMP_GE_OQ);
    found = _mm512_mask_or_epi32(found, sign, found, _mm512_set1_epi32(static_cast<int>(1u << c)));
    if (Sums) sum = _mm512_add_ps(sum, _mm512_abs_ps(value));
  }
  _mm512_store_si512(bits, found);
  if (Sums) _mm512_mask_storeu_ps(sums, in, sum);
#else
#if defined(__AVX2__)
  if (count == kPlaces) {
    __m256i low = _mm256_setzero_si256(), high = low;
    const __m256 none = _mm256_setzero_ps(), minus = _mm256_set1_ps(-0.0f);
    __m256 first = Sums ? _mm256_loadu_ps(sums) : none, second = Sums ? _mm256_loadu_ps(sums + 8) : none;
    for (int64_t c = 0; c < depth; ++c, x += places) {
      const __m256 bit = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(1u << c)));
      const __m256 a = _mm256_loadu_ps(x), b = _mm256_loadu_ps(x + 8);
      low = _mm256_or_si256(low, _mm256_castps_si256(_mm256_and_ps(bit, _mm256_cmp_ps(a, none, _CMP_GE_OQ))));
      high = _mm256_or_si256(high, _mm256_castps_si256(_mm256_and_ps(bit, _mm256_cmp_ps(b, none, _CMP_GE_OQ))));
      if (Sums) {
        first = _mm256_add_ps(first, _mm256_andnot_ps(minus, a));
        second = _mm256_add_ps(second, _mm256_andnot_ps(minus, b));
      }
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bits), low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bits + 8), high);
    if (Sums) {
      _mm256_storeu_ps(sums, first);
      _mm256_storeu_ps(sums + 8, second);
    }
    return;
  }
#endif
  for (int64_t c = 0; c < depth; ++c, x += places) {
    for (int64_t i = 0; i < count; ++i) {
      bits[i] |= static_cast<uint32_t>(x[i] >= 0.0f) << c;
      if (Sums) sums[i] += __builtin_fabsf(x[i]);
    }
  }
#endif
}

}  // namespace

// Signs, 1 from 0 on.
void pack_signs_nchw(const float* x, int32_t* packed, float* magnitude, int64_t batch, int64_t channels, int64_t places,
                     int64_t words) {
  if (magnitude != nullptr) std::memset(magnitude, 0, sizeof(float) * static_cast<size_t>(batch * places));
  each_word(batch, channels, places, words, [&](int64_t n, int64_t first, int64_t count, int64_t from, int64_t depth,
                                                int64_t w) {
    alignas(64) uint32_t bits[kPlaces] = {};
    const float* own = x + (n * channels + from) * places + first;
    float* sums = magnitude == nullptr ? nullptr : magnitude + n * places + first;
    if (depth > 0 && sums != nullptr) signs_of_places<true>(own, places, count, depth, bits, sums);
    else if (depth > 0) signs_of_places<false>(own, places, count, depth, bits, nullptr);
    uint32_t* to = reinterpret_cast<uint32_t*>(packed) + (n * places + first) * words + w;
    for (int64_t i = 0; i < count; ++i) to[i * words] = bits[i];
  });
  const float part = 1.0f / static_cast<float>(channels);
  for (int64_t i = 0; magnitude != nullptr && i < batch * places; ++i) magnitude[i] *= part;
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
        for (int i = 0; i < 16; ++i) sums[i] += __builtin_fabsf(source[c + i]);
      }
      for (; c < channels; ++c) sums[0] += __builtin_fabsf(source[c]);
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
