// Weights of -1, 0, +1 (and so signs) in two bits, with int8 or float activations.
//
// A code is w + 1. Weights lie as [outputs / 64][depth / 16][4][64 bytes]: the 64 bytes are 16 outputs x 4 bytes, so that a
// 32-bit lane holds 16 weights of one output: bits 8 j + 2 g of the lane are the weight of depth 4 g + j. Shifted by 2 g and
// masked it is what VPDPBUSD takes beside four activations; shifted by 8 j + 2 g it is an index for VPERMPS.
//
// int8: sum w x = sum code x - sum x. Fields that are masked and not shifted are 1, 4, 16 and 64 times their codes: VNNI adds
// each in a sum of its own, which is shifted at the end; `depth` stays below 2^18 for that.
// Products of four are added in 32 bits (VNNI) or in pairs in 16 (AVX2: 4 x 512 fits).
#include "bits.h"

namespace lilliput {
namespace LILLIPUT_ISA {
namespace {

constexpr int64_t kOutputs = 64, kStep = 16;
constexpr int64_t kAhead = 512;  // bytes that are fetched ahead of a stream from memory

#if defined(__AVX512VNNI__)
using Four = __m512i;  // four values in each of 16 lanes
constexpr int kVec = 4, kTile = 6;
LILLIPUT_INLINE Four bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
LILLIPUT_INLINE Four repeated(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
}
LILLIPUT_INLINE Four nothing() { return _mm512_setzero_si512(); }
template <int G>
LILLIPUT_INLINE Four field(Four v) {
  return _mm512_and_si512(_mm512_srli_epi16(v, 2 * G), _mm512_set1_epi8(3));
}
LILLIPUT_INLINE Four nonzero(Four code) { return _mm512_andnot_si512(code, _mm512_set1_epi8(1)); }
LILLIPUT_INLINE Four multiplied(Four sum, Four code, Four x) { return _mm512_dpbusd_epi32(sum, code, x); }
LILLIPUT_INLINE void keep(int32_t* p, Four x) { _mm512_storeu_si512(p, x); }
LILLIPUT_INLINE void put(uint8_t* p, Four x) { _mm512_storeu_si512(p, x); }
#elif defined(__AVX2__)
using Four = __m256i;
constexpr int kVec = 8, kTile = 1;
LILLIPUT_INLINE Four bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
LILLIPUT_INLINE Four repeated(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return _mm256_set1_epi32(four);
}
LILLIPUT_INLINE Four nothing() { return _mm256_setzero_si256(); }
template <int G>
LILLIPUT_INLINE Four field(Four v) {
  return _mm256_and_si256(_mm256_srli_epi16(v, 2 * G), _mm256_set1_epi8(3));
}
LILLIPUT_INLINE Four nonzero(Four code) { return _mm256_andnot_si256(code, _mm256_set1_epi8(1)); }
LILLIPUT_INLINE Four multiplied(Four sum, Four code, Four x) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(code, x), _mm256_set1_epi16(1)));
}
LILLIPUT_INLINE void keep(int32_t* p, Four x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
LILLIPUT_INLINE void put(uint8_t* p, Four x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
#else
struct Four {
  int32_t lane[4];  // as sums; as bytes the same memory
};
constexpr int kVec = 16, kTile = 1;
LILLIPUT_INLINE Four bytes(const uint8_t* p) {
  Four v;
  std::memcpy(&v, p, 16);
  return v;
}
LILLIPUT_INLINE Four repeated(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return {{four, four, four, four}};
}
LILLIPUT_INLINE Four nothing() { return {{0, 0, 0, 0}}; }
template <int G>
LILLIPUT_INLINE Four field(const Four& v) {
  Four out;
  for (int i = 0; i < 4; ++i) {
    out.lane[i] = static_cast<int32_t>(static_cast<uint32_t>(v.lane[i]) >> (2 * G) & 0x03030303u);
  }
  return out;
}
LILLIPUT_INLINE Four nonzero(const Four& code) {
  Four out;
  for (int i = 0; i < 4; ++i) out.lane[i] = ~code.lane[i] & 0x01010101;
  return out;
}
LILLIPUT_INLINE Four multiplied(const Four& sum, const Four& code, const Four& x) {
  uint8_t c[16];
  int8_t v[16];
  std::memcpy(c, &code, 16);
  std::memcpy(v, &x, 16);
  Four out = sum;
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) out.lane[i] += static_cast<int32_t>(c[4 * i + j]) * v[4 * i + j];
  }
  return out;
}
LILLIPUT_INLINE void keep(int32_t* p, const Four& x) { std::memcpy(p, &x, 16); }
LILLIPUT_INLINE void put(uint8_t* p, const Four& x) { std::memcpy(p, &x, 16); }
#endif

constexpr int64_t kBytes = 256 / kVec;         // of a vector
constexpr int kGroup = kVec < 4 ? kVec : 4;    // vectors of outputs that a tile holds

// Where the depth of a window lies in the padded map: `count` stretches of `length` bytes.
struct Window {
  const int64_t* offset;
  int64_t count, length;
};

// Sums of one place with 64 outputs, from the packed codes: no step between memory and products.
template <bool Both>
void one_place(const uint8_t* weight, const int8_t* x, const Window& window, int32_t* total, int32_t* magnitude) {
  for (int v = 0; v < kVec; v += kGroup) {
    Four sum[kGroup], other[kGroup];
    for (int i = 0; i < kGroup; ++i) sum[i] = other[i] = nothing();
#if defined(__AVX512VNNI__)
    Four part[kGroup][4];
#pragma GCC unroll 4
    for (int i = 0; i < kGroup; ++i) part[i][0] = part[i][1] = part[i][2] = part[i][3] = nothing();
#endif
    const uint8_t* own = weight + v * kBytes;
    for (int64_t r = 0; r < window.count; ++r) {
      const int8_t* from = x + window.offset[r];
#if defined(__AVX512VNNI__)
      if constexpr (!Both) {
        const Four m0 = _mm512_set1_epi8(3), m1 = _mm512_set1_epi8(12), m2 = _mm512_set1_epi8(48),
                   m3 = _mm512_set1_epi8(-64);
        const auto step = [&](const uint8_t* w, const int8_t* value) {
          const Four x0 = repeated(value), x1 = repeated(value + 4), x2 = repeated(value + 8), x3 = repeated(value + 12);
#pragma GCC unroll 4
          for (int i = 0; i < kGroup; ++i) {
            _mm_prefetch(reinterpret_cast<const char*>(w + kAhead + 64 * i), _MM_HINT_T0);
            const Four code = bytes(w + i * kBytes);
            part[i][0] = _mm512_dpbusd_epi32(part[i][0], _mm512_and_si512(code, m0), x0);
            part[i][1] = _mm512_dpbusd_epi32(part[i][1], _mm512_and_si512(code, m1), x1);
            part[i][2] = _mm512_dpbusd_epi32(part[i][2], _mm512_and_si512(code, m2), x2);
            part[i][3] = _mm512_dpbusd_epi32(part[i][3], _mm512_and_si512(code, m3), x3);
          }
        };
        // Four places of the depth in turn: memory gives more to four streams than to one.
        const int64_t steps = window.length / kStep, quarter = steps / 4;
        for (int64_t k = 0; k < quarter; ++k) {
#pragma GCC unroll 4
          for (int64_t q = 0; q < 4; ++q) step(own + (q * quarter + k) * 256, from + (q * quarter + k) * kStep);
        }
        for (int64_t k = 4 * quarter; k < steps; ++k) step(own + k * 256, from + k * kStep);
        own += steps * 256;
        continue;
      }
#endif
      for (int64_t k = 0; k < window.length; k += kStep, own += 256) {
#if defined(__SSE__) || defined(__AVX2__)
        for (int i = 0; i < 4; ++i) __builtin_prefetch(own + kAhead + 64 * i);
#endif
        const Four x0 = repeated(from + k), x1 = repeated(from + k + 4), x2 = repeated(from + k + 8),
                   x3 = repeated(from + k + 12);
#pragma GCC unroll 4
        for (int i = 0; i < kGroup; ++i) {
          const Four code = bytes(own + i * kBytes);
          const Four a = field<0>(code), b = field<1>(code), c = field<2>(code), d = field<3>(code);
          sum[i] = multiplied(multiplied(multiplied(multiplied(sum[i], a, x0), b, x1), c, x2), d, x3);
          if constexpr (Both) {
            other[i] = multiplied(multiplied(other[i], nonzero(a), x0), nonzero(b), x1);
            other[i] = multiplied(multiplied(other[i], nonzero(c), x2), nonzero(d), x3);
          }
        }
      }
    }
#if defined(__AVX512VNNI__)
#pragma GCC unroll 4
    for (int i = 0; !Both && i < kGroup; ++i) {
      const Four low = _mm512_add_epi32(part[i][0], _mm512_srai_epi32(part[i][1], 2));
      const Four high = _mm512_add_epi32(_mm512_srai_epi32(part[i][2], 4), _mm512_srai_epi32(part[i][3], 6));
      sum[i] = _mm512_add_epi32(low, high);
    }
#endif
    for (int i = 0; i < kGroup; ++i) {
      keep(total + (v + i) * (kOutputs / kVec), sum[i]);
      if constexpr (Both) keep(magnitude + (v + i) * (kOutputs / kVec), other[i]);
    }
  }
}

// The codes of one block, a byte each: [depth / 4][64 outputs][4].
void unpack(const uint8_t* weight, int64_t steps, uint8_t* out) {
  for (int64_t k = 0; k < steps; ++k, weight += 256, out += 1024) {
    for (int v = 0; v < kVec; ++v) {
      const Four code = bytes(weight + v * kBytes);
      put(out + v * kBytes, field<0>(code));
      put(out + 256 + v * kBytes, field<1>(code));
      put(out + 512 + v * kBytes, field<2>(code));
      put(out + 768 + v * kBytes, field<3>(code));
    }
  }
}

// Sums of kTile places with 64 outputs, from unpacked codes.
void many_places(const uint8_t* codes, const int8_t* const* x, const Window& window, int32_t* total) {
  for (int v = 0; v < kVec; v += kGroup) {
    Four sum[kTile][kGroup];
#pragma GCC unroll 8
    for (int p = 0; p < kTile; ++p) {
#pragma GCC unroll 4
      for (int i = 0; i < kGroup; ++i) sum[p][i] = nothing();
    }
    const uint8_t* own = codes + v * kBytes;
    for (int64_t r = 0; r < window.count; ++r) {
      const int64_t from = window.offset[r];
      for (int64_t k = 0; k < window.length; k += 4, own += 256) {
        Four w[kGroup];
#pragma GCC unroll 4
        for (int i = 0; i < kGroup; ++i) w[i] = bytes(own + i * kBytes);
#pragma GCC unroll 8
        for (int p = 0; p < kTile; ++p) {
          const Four value = repeated(x[p] + from + k);
#pragma GCC unroll 4
          for (int i = 0; i < kGroup; ++i) sum[p][i] = multiplied(sum[p][i], w[i], value);
        }
      }
    }
#pragma GCC unroll 8
    for (int p = 0; p < kTile; ++p) {
#pragma GCC unroll 4
      for (int i = 0; i < kGroup; ++i) keep(total + p * kOutputs + (v + i) * (kOutputs / kVec), sum[p][i]);
    }
  }
}

}  // namespace

// x: [batch][height][width][channels], int8; what lies outside of it is `border`. total (may be null) gets sum w x, and
// real = first[o] sum w x + second[o] sum |w| x + bias[o]; second and bias may be null.
void ternary_conv(const int8_t* x, const uint8_t* weight, int64_t batch, int64_t height, int64_t width, int64_t channels,
                  int64_t outputs, int64_t rows, int64_t columns, int64_t kh, int64_t kw, int64_t sh, int64_t sw,
                  int64_t ph, int64_t pw, int64_t dh, int64_t dw, int64_t border, const float* first,
                  const float* second, const float* bias, int32_t* total, float* real) {
  // The map with its border, channels filled up with zeros to whole steps.
  const int64_t deep = (channels + kStep - 1) / kStep * kStep, high = height + 2 * ph, wide = width + 2 * pw;
  const int8_t* map = x;
  if (deep != channels || ph != 0 || pw != 0) {
    int8_t* to = scratch_of<int8_t>(0, batch * high * wide * deep);
    map = to;
    for (int64_t n = 0; n < batch; ++n) {
      for (int64_t i = 0; i < high; ++i) {
        for (int64_t j = 0; j < wide; ++j, to += deep) {
          const bool in = i >= ph && i < ph + height && j >= pw && j < pw + width;
          if (in) std::memcpy(to, x + ((n * height + i - ph) * width + j - pw) * channels, static_cast<size_t>(channels));
          else std::memset(to, static_cast<int>(border), static_cast<size_t>(channels));
          std::memset(to + channels, 0, static_cast<size_t>(deep - channels));
        }
      }
    }
  }
  int32_t* sums = scratch_of<int32_t>(1, batch * high * wide);
  for (int64_t i = 0; i < batch * high * wide; ++i) {
    int32_t sum = 0;
    for (int64_t k = 0; k < deep; ++k) sum += map[i * deep + k];
    sums[i] = sum;
  }
  const int64_t pieces = dw == 1 ? 1 : kw;
  int64_t* offsets = scratch_of<int64_t>(2, kh * pieces);
  for (int64_t i = 0; i < kh; ++i) {
    for (int64_t j = 0; j < pieces; ++j) offsets[i * pieces + j] = (i * dh * wide + j * dw) * deep;
  }
  const Window window{offsets, kh * pieces, (dw == 1 ? kw : 1) * deep};
  const int64_t places = batch * rows * columns, blocks = (outputs + kOutputs - 1) / kOutputs;
  const int64_t steps = kh * kw * deep / kStep;
  // Unpacking pays where a block of codes serves many places, and not where sums of |w| are wanted too.
  const bool unpacked = kTile > 1 && places >= 2 * kTile && second == nullptr;
  const int64_t tile = unpacked ? kTile : 1, tiles = (places + tile - 1) / tile;
  // Of every place that comes out: where its window begins, and the sum of its x.
  int64_t* origins = scratch_of<int64_t>(4, places);
  int32_t* inside = scratch_of<int32_t>(5, places);
  int64_t place = 0;
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t y = 0; y < rows; ++y) {
      for (int64_t z = 0; z < columns; ++z, ++place) {
        const int64_t corner = (n * high + y * sh) * wide + z * sw;
        int32_t sum = 0;
        for (int64_t i = 0; i < kh; ++i) {
          for (int64_t j = 0; j < kw; ++j) sum += sums[corner + i * dh * wide + j * dw];
        }
        origins[place] = corner * deep;
        inside[place] = sum;
      }
    }
  }
  parallel_for(blocks * tiles, 1 + (1 << 12) / (steps + 1), [&](int64_t begin, int64_t end) {
    uint8_t* codes = unpacked ? scratch_of<uint8_t>(3, steps * kStep * kOutputs) : nullptr;
    int64_t held = -1;
    alignas(64) int32_t found[kTile * kOutputs], magnitude[kOutputs];
    for (int64_t t = begin; t < end; ++t) {
      const int64_t b = t / tiles, at = t % tiles * tile, from = b * kOutputs;
      const uint8_t* own = weight + b * steps * 256;
      const int64_t count = places - at < tile ? places - at : tile;
      if (unpacked) {
        if (held != b) unpack(own, steps, codes);
        held = b;
        const int8_t* rows_of_x[kTile];
        for (int64_t p = 0; p < tile; ++p) rows_of_x[p] = map + origins[at + (p < count ? p : count - 1)];
        many_places(codes, rows_of_x, window, found);
      } else if (second != nullptr) {
        one_place<true>(own, map + origins[at], window, found, magnitude);
      } else {
        one_place<false>(own, map + origins[at], window, found, magnitude);
      }
      const int64_t width_of = outputs - from < kOutputs ? outputs - from : kOutputs;
      for (int64_t p = 0; p < count; ++p) {
        const int32_t sum = inside[at + p];
        const int64_t to = (at + p) * outputs + from;
        const int32_t* __restrict value = found + p * kOutputs;
        if (total != nullptr) {
          for (int64_t o = 0; o < width_of; ++o) total[to + o] = value[o] - sum;
          continue;
        }
        float* __restrict out = real + to;
        const float* __restrict factor = first + from;
        for (int64_t o = 0; o < width_of; ++o) out[o] = factor[o] * static_cast<float>(value[o] - sum);
        if (second != nullptr) {
          for (int64_t o = 0; o < width_of; ++o) out[o] += second[from + o] * static_cast<float>(magnitude[o]);
        }
        if (bias != nullptr) {
          for (int64_t o = 0; o < width_of; ++o) out[o] += bias[from + o];
        }
      }
    }
  });
}

// y = scale[o] sum value(code) x + bias[o] of rows of floats; values of the codes 0, 1, 2; n is a multiple of 16 (zeros).
void ternary_linear(const float* x, const uint8_t* weight, int64_t rows, int64_t n, int64_t outputs, double low,
                    double middle, double high, const float* scale, const float* bias, float* y) {
  const int64_t blocks = (outputs + kOutputs - 1) / kOutputs, steps = n / kStep;
  const float values[4] = {static_cast<float>(low), static_cast<float>(middle), static_cast<float>(high), 0.0f};
  parallel_for(rows * blocks, 1 + (1 << 10) / (steps + 1), [&](int64_t begin, int64_t end) {
    alignas(64) float found[kOutputs];
    for (int64_t t = begin; t < end; ++t) {
      const int64_t row = t % rows, from = t / rows * kOutputs;
      const uint8_t* own = weight + t / rows * steps * 256;
      const float* input = x + row * n;
#if defined(__AVX512F__)
      const __m512 table = _mm512_broadcast_f32x4(_mm_loadu_ps(values));
      __m512 sum[4], other[4];
      for (int v = 0; v < 4; ++v) sum[v] = other[v] = _mm512_setzero_ps();
      for (int64_t k = 0; k < steps; ++k, own += 256, input += kStep) {
        __m512i lanes[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
          lanes[v] = _mm512_loadu_si512(own + 64 * v);
          _mm_prefetch(reinterpret_cast<const char*>(own + kAhead + 64 * v), _MM_HINT_T0);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {  // depth i = 4 g + j
          const int shift = 8 * (i % 4) + 2 * (i / 4);
          const __m512 value = _mm512_set1_ps(input[i]);
#pragma GCC unroll 4
          for (int v = 0; v < 4; ++v) {
            const __m512 w = _mm512_permutexvar_ps(_mm512_srli_epi32(lanes[v], shift), table);
            if (i % 2 == 0) sum[v] = _mm512_fmadd_ps(w, value, sum[v]);
            else other[v] = _mm512_fmadd_ps(w, value, other[v]);
          }
        }
      }
      for (int v = 0; v < 4; ++v) _mm512_store_ps(found + 16 * v, _mm512_add_ps(sum[v], other[v]));
#else
      for (int64_t o = 0; o < kOutputs; ++o) found[o] = 0.0f;
      for (int64_t k = 0; k < steps; ++k, own += 256, input += kStep) {
        for (int i = 0; i < 16; ++i) {
          const uint8_t* column = own + i % 4;
          const int shift = 2 * (i / 4);
          for (int64_t o = 0; o < kOutputs; ++o) found[o] += values[column[4 * o] >> shift & 3] * input[i];
        }
      }
#endif
      const int64_t width = outputs - from < kOutputs ? outputs - from : kOutputs;
      float* to = y + row * outputs + from;
      for (int64_t o = 0; o < width; ++o) to[o] = scale[from + o] * found[o] + (bias == nullptr ? 0.0f : bias[from + o]);
    }
  });
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput

LILLIPUT_KERNEL(ternary_conv)
LILLIPUT_KERNEL(ternary_linear)
