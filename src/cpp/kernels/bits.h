// Counts of ones over words of 32 bits: the tile that binary and bit-plane layers share.
//
// Weights lie as [outputs / 64][words][64]: a word of 64 outputs side by side, so that a vector holds one word of as many
// outputs as it has lanes. A tile keeps the counts of P rows x V vectors of outputs in registers and goes through the
// words; a row's words are spread over its vector. Counts are 32-bit: AVX-512 counts lanes at once (VPOPCNTD), the others
// count bytes, by table (VPSHUFB, CNT) or by additions, and widen them before a byte can overflow.
#pragma once

#include "kernel.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace lilliput {
namespace LILLIPUT_ISA {

constexpr int64_t kBlock = 64;  // outputs that lie side by side

#if defined(__AVX512VPOPCNTDQ__)
using Bits = __m512i;
constexpr int kLanes = 16, kRows = 6, kVectors = 4;
constexpr int64_t kChunk = int64_t{1} << 40;  // words until counts are widened: never

LILLIPUT_INLINE Bits load(const uint32_t* p) { return _mm512_loadu_si512(p); }
LILLIPUT_INLINE Bits spread(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
LILLIPUT_INLINE Bits zero() { return _mm512_setzero_si512(); }
LILLIPUT_INLINE Bits exclusive(Bits a, Bits b) { return _mm512_xor_si512(a, b); }
LILLIPUT_INLINE Bits both(Bits a, Bits b) { return _mm512_and_si512(a, b); }
LILLIPUT_INLINE Bits counted(Bits sum, Bits x) { return _mm512_add_epi32(sum, _mm512_popcnt_epi32(x)); }
// Of places where `a` is 1: those where b and c are equal; and all but those where they differ.
LILLIPUT_INLINE Bits equal_in(Bits a, Bits b, Bits c) { return _mm512_ternarylogic_epi32(a, b, c, 0x90); }
LILLIPUT_INLINE Bits all_but_different_in(Bits a, Bits b, Bits c) { return _mm512_ternarylogic_epi32(a, b, c, 0x9f); }
LILLIPUT_INLINE Bits widened(Bits, Bits counts) { return counts; }
LILLIPUT_INLINE void store(int32_t* p, Bits x) { _mm512_storeu_si512(p, x); }
#elif defined(__AVX2__)
using Bits = __m256i;
constexpr int kLanes = 8, kRows = 2, kVectors = 2;
constexpr int64_t kChunk = 31;

LILLIPUT_INLINE Bits load(const uint32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
LILLIPUT_INLINE Bits spread(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
LILLIPUT_INLINE Bits zero() { return _mm256_setzero_si256(); }
LILLIPUT_INLINE Bits exclusive(Bits a, Bits b) { return _mm256_xor_si256(a, b); }
LILLIPUT_INLINE Bits both(Bits a, Bits b) { return _mm256_and_si256(a, b); }
LILLIPUT_INLINE Bits inverted(Bits a) { return _mm256_xor_si256(a, _mm256_set1_epi8(-1)); }
LILLIPUT_INLINE Bits counted(Bits sum, Bits x) {
  const Bits table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3,
                                      2, 3, 3, 4);
  const Bits low = _mm256_set1_epi8(15);
  const Bits a = _mm256_shuffle_epi8(table, _mm256_and_si256(x, low));
  const Bits b = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), low));
  return _mm256_add_epi8(sum, _mm256_add_epi8(a, b));
}
LILLIPUT_INLINE Bits widened(Bits sum, Bits bytes) {
  const Bits pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
LILLIPUT_INLINE void store(int32_t* p, Bits x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
#elif defined(__ARM_NEON)
using Bits = uint32x4_t;
constexpr int kLanes = 4, kRows = 4, kVectors = 4;
constexpr int64_t kChunk = 31;

LILLIPUT_INLINE Bits load(const uint32_t* p) { return vld1q_u32(p); }
LILLIPUT_INLINE Bits spread(uint32_t x) { return vdupq_n_u32(x); }
LILLIPUT_INLINE Bits zero() { return vdupq_n_u32(0); }
LILLIPUT_INLINE Bits exclusive(Bits a, Bits b) { return veorq_u32(a, b); }
LILLIPUT_INLINE Bits both(Bits a, Bits b) { return vandq_u32(a, b); }
LILLIPUT_INLINE Bits inverted(Bits a) { return vmvnq_u32(a); }
LILLIPUT_INLINE Bits counted(Bits sum, Bits x) {
  return vreinterpretq_u32_u8(vaddq_u8(vreinterpretq_u8_u32(sum), vcntq_u8(vreinterpretq_u8_u32(x))));
}
LILLIPUT_INLINE Bits widened(Bits sum, Bits bytes) { return vpadalq_u16(sum, vpaddlq_u8(vreinterpretq_u8_u32(bytes))); }
LILLIPUT_INLINE void store(int32_t* p, Bits x) { vst1q_s32(p, vreinterpretq_s32_u32(x)); }
#else
// Plain C++: loops over arrays, which compilers make vectors of.
struct Bits {
  uint32_t lane[4];
};
constexpr int kLanes = 4, kRows = 2, kVectors = 4;
constexpr int64_t kChunk = 31;

template <typename F>
LILLIPUT_INLINE Bits each(const F& f) {
  Bits out;
  for (int i = 0; i < kLanes; ++i) out.lane[i] = f(i);
  return out;
}
LILLIPUT_INLINE Bits load(const uint32_t* p) {
  return each([&](int i) { return p[i]; });
}
LILLIPUT_INLINE Bits spread(uint32_t x) {
  return each([&](int) { return x; });
}
LILLIPUT_INLINE Bits zero() { return spread(0); }
LILLIPUT_INLINE Bits exclusive(const Bits& a, const Bits& b) {
  return each([&](int i) { return a.lane[i] ^ b.lane[i]; });
}
LILLIPUT_INLINE Bits both(const Bits& a, const Bits& b) {
  return each([&](int i) { return a.lane[i] & b.lane[i]; });
}
LILLIPUT_INLINE Bits inverted(const Bits& a) {
  return each([&](int i) { return ~a.lane[i]; });
}
LILLIPUT_INLINE Bits counted(const Bits& sum, const Bits& x) {
  return each([&](int i) {
    uint32_t v = x.lane[i];
    v -= (v >> 1) & 0x55555555u;
    v = (v & 0x33333333u) + ((v >> 2) & 0x33333333u);
    return sum.lane[i] + ((v + (v >> 4)) & 0x0f0f0f0fu);
  });
}
LILLIPUT_INLINE Bits widened(const Bits& sum, const Bits& bytes) {
  return each([&](int i) {
    const uint32_t v = (bytes.lane[i] & 0x00ff00ffu) + ((bytes.lane[i] >> 8) & 0x00ff00ffu);
    return sum.lane[i] + (v & 0xffffu) + (v >> 16);
  });
}
LILLIPUT_INLINE void store(int32_t* p, const Bits& x) {
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int32_t>(x.lane[i]);
}
#endif

#if !defined(__AVX512VPOPCNTDQ__)
LILLIPUT_INLINE Bits equal_in(const Bits& a, const Bits& b, const Bits& c) { return both(a, inverted(exclusive(b, c))); }
LILLIPUT_INLINE Bits all_but_different_in(const Bits& a, const Bits& b, const Bits& c) {
  return inverted(both(a, exclusive(b, c)));
}
#endif

// Words that lie side by side in rows and in weights: `length` of them, from places that are counted from a row's first
// word and from a block's first weight.
struct Stretch {
  int64_t x, w, length;
};

// What a product goes through. Where a kind has two planes, the second lies x_plane (of rows) and w_plane (of weights)
// words behind the first.
struct Runs {
  const Stretch* stretch;
  int64_t count, x_plane, w_plane;
};

// What is counted of a word of x and one of w; a byte of the counts grows by at most 8 kPlanes.
struct Xor {
  static constexpr int kPlanes = 1;
  static LILLIPUT_INLINE Bits add(const Bits& count, const Bits* x, const Bits* w) {
    return counted(count, exclusive(x[0], w[0]));
  }
};
struct And {
  static constexpr int kPlanes = 1;
  static LILLIPUT_INLINE Bits add(const Bits& count, const Bits* x, const Bits* w) {
    return counted(count, both(x[0], w[0]));
  }
};
// Planes "not zero" and "negative": equal signs, and 32 less the different signs; their sum is the product plus 32.
struct Ternary {
  static constexpr int kPlanes = 2;
  static LILLIPUT_INLINE Bits add(const Bits& count, const Bits* x, const Bits* w) {
    const Bits full = both(x[0], w[0]);
    return counted(counted(count, equal_in(full, x[1], w[1])), all_but_different_in(full, x[1], w[1]));
  }
};

// Rows of a tile: their counts, what is read and what is between must fit into the registers.
template <typename Op>
constexpr int rows_of() {
  return Op::kPlanes == 1 ? kRows : kRows < 4 ? kRows : 4;
}

// Counts of P rows and V vectors of outputs; row p begins at x + at[p]; out is [P][kBlock].
template <typename Op, int P, int V>
LILLIPUT_INLINE void tile(const uint32_t* x, const int64_t* at, const uint32_t* weight, const Runs& runs, int32_t* out) {
  constexpr int64_t chunk = kChunk / Op::kPlanes;
  Bits sum[P][V], count[P][V];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[p][v] = count[p][v] = zero();
  }
  for (int64_t r = 0; r < runs.count; ++r) {
    const Stretch& own = runs.stretch[r];
    const uint32_t* rows[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) rows[p] = x + (at[p] + own.x);
    const uint32_t* from = weight + own.w * kBlock;
    for (int64_t begin = 0; begin < own.length; begin += chunk) {
      const int64_t end = own.length - begin < chunk ? own.length : begin + chunk;
      for (int64_t k = begin; k < end; ++k, from += kBlock) {
        Bits w[V][Op::kPlanes];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
          w[v][0] = load(from + v * kLanes);
          if constexpr (Op::kPlanes == 2) w[v][1] = load(from + runs.w_plane + v * kLanes);
        }
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
          Bits value[Op::kPlanes];
          value[0] = spread(rows[p][k]);
          if constexpr (Op::kPlanes == 2) value[1] = spread(rows[p][runs.x_plane + k]);
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) count[p][v] = Op::add(count[p][v], value, w[v]);
        }
      }
      if constexpr (kChunk < 64) {
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) {
            sum[p][v] = widened(sum[p][v], count[p][v]);
            count[p][v] = zero();
          }
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(out + p * kBlock + v * kLanes, kChunk < 64 ? sum[p][v] : count[p][v]);
  }
}

template <typename Op, int P>
void tile_row(const uint32_t* x, const int64_t* at, const uint32_t* weight, const Runs& runs, int64_t outputs,
              int32_t* out) {
  for (int64_t from = 0; from < outputs; from += kLanes * kVectors) {
    const int64_t vectors = (outputs - from + kLanes - 1) / kLanes;
    switch (vectors < kVectors ? vectors : kVectors) {
      case 1: tile<Op, P, 1>(x, at, weight + from, runs, out + from); break;
      case 2: tile<Op, P, 2>(x, at, weight + from, runs, out + from); break;
      case 3:
        if constexpr (kVectors >= 3) tile<Op, P, 3>(x, at, weight + from, runs, out + from);
        break;
      default:
        if constexpr (kVectors >= 4) tile<Op, P, 4>(x, at, weight + from, runs, out + from);
    }
  }
}

// Counts of up to rows_of<Op>() rows with up to kBlock outputs of one block; out is [rows][kBlock].
template <typename Op>
void block(const uint32_t* x, const int64_t* at, int64_t count, const uint32_t* weight, const Runs& runs,
           int64_t outputs, int32_t* out) {
  constexpr int most = rows_of<Op>();
  switch (count) {
    case 1: tile_row<Op, 1>(x, at, weight, runs, outputs, out); break;
    case 2: tile_row<Op, 2>(x, at, weight, runs, outputs, out); break;
    case 3:
      if constexpr (most >= 3) tile_row<Op, 3>(x, at, weight, runs, outputs, out);
      break;
    case 4:
      if constexpr (most >= 4) tile_row<Op, 4>(x, at, weight, runs, outputs, out);
      break;
    case 5:
      if constexpr (most >= 5) tile_row<Op, 5>(x, at, weight, runs, outputs, out);
      break;
    default:
      if constexpr (most >= 6) tile_row<Op, 6>(x, at, weight, runs, outputs, out);
  }
}

// The signs of `count` floats as bits, 1 from 0 on, into words of 32; what fills the last word is 0.
LILLIPUT_INLINE void pack_signs(const float* x, int64_t count, uint32_t* words) {
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 32 <= count; i += 32) {
    const uint32_t low = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i), _mm512_setzero_ps(), _CMP_GE_OQ);
    const uint32_t high = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i + 16), _mm512_setzero_ps(), _CMP_GE_OQ);
    *words++ = low | high << 16;
  }
#elif defined(__AVX2__)
  for (; i + 32 <= count; i += 32) {
    uint32_t word = 0;
    for (int j = 0; j < 4; ++j) {
      const __m256 sign = _mm256_cmp_ps(_mm256_loadu_ps(x + i + 8 * j), _mm256_setzero_ps(), _CMP_GE_OQ);
      word |= static_cast<uint32_t>(_mm256_movemask_ps(sign)) << (8 * j);
    }
    *words++ = word;
  }
#endif
  for (; i < count; i += 32) {
    const int64_t n = count - i < 32 ? count - i : 32;
    uint32_t word = 0;
    for (int64_t j = 0; j < n; ++j) word |= static_cast<uint32_t>(x[i + j] >= 0.0f) << j;
    *words++ = word;
  }
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput
