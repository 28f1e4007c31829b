// One vector of floats of the instruction set that a kernel is compiled for, and what convolutions do with it.
#pragma once

#include "kernel.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC's own headers leave the undefined halves of masked intrinsics undefined (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#endif

namespace lilliput {
namespace LILLIPUT_ISA {

#if defined(__AVX512F__)

constexpr int kLanes = 16;
using Vec = __m512;
LILLIPUT_INLINE Vec zero() { return _mm512_setzero_ps(); }
LILLIPUT_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
LILLIPUT_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
LILLIPUT_INLINE Vec spread(float x) { return _mm512_set1_ps(x); }
LILLIPUT_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
LILLIPUT_INLINE Vec larger(Vec a, Vec b) { return _mm512_max_ps(a, b); }
LILLIPUT_INLINE Vec smaller(Vec a, Vec b) { return _mm512_min_ps(a, b); }
// Lanes from .. to - 1; what is loaded in the others is 0, and their memory isn't touched.
using Mask = __mmask16;
LILLIPUT_INLINE Mask mask_of(int from, int to) { return static_cast<Mask>(((1u << to) - 1) & ~((1u << from) - 1)); }
LILLIPUT_INLINE Vec load_if(const float* p, Mask mask) { return _mm512_maskz_loadu_ps(mask, p); }
// Every second of the lanes of a and b.
LILLIPUT_INLINE Vec even_of(Vec a, Vec b) {
  return _mm512_permutex2var_ps(a, _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30), b);
}
LILLIPUT_INLINE Vec odd_of(Vec a, Vec b) {
  return _mm512_permutex2var_ps(a, _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31), b);
}
// The first n lanes, 0 <= n <= kLanes; the others are 0, and their memory isn't touched.
LILLIPUT_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
LILLIPUT_INLINE Vec load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
LILLIPUT_INLINE void store_first(float* p, Vec v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }

// Rows become columns.
LILLIPUT_INLINE void transpose(Vec (&r)[kLanes]) {
  Vec t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

#elif defined(__AVX2__) && defined(__FMA__)

constexpr int kLanes = 8;
using Vec = __m256;
LILLIPUT_INLINE Vec zero() { return _mm256_setzero_ps(); }
LILLIPUT_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
LILLIPUT_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
LILLIPUT_INLINE Vec spread(float x) { return _mm256_set1_ps(x); }
LILLIPUT_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
LILLIPUT_INLINE Vec larger(Vec a, Vec b) { return _mm256_max_ps(a, b); }
LILLIPUT_INLINE Vec smaller(Vec a, Vec b) { return _mm256_min_ps(a, b); }
using Mask = __m256i;
LILLIPUT_INLINE Mask mask_of(int from, int to) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(from), lane),
                             _mm256_cmpgt_epi32(_mm256_set1_epi32(to), lane));
}
LILLIPUT_INLINE Vec load_if(const float* p, Mask mask) { return _mm256_maskload_ps(p, mask); }
LILLIPUT_INLINE Vec in_order(Vec pairs) {
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(pairs), 0xd8));
}
LILLIPUT_INLINE Vec even_of(Vec a, Vec b) { return in_order(_mm256_shuffle_ps(a, b, 0x88)); }
LILLIPUT_INLINE Vec odd_of(Vec a, Vec b) { return in_order(_mm256_shuffle_ps(a, b, 0xdd)); }
LILLIPUT_INLINE __m256i first(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
LILLIPUT_INLINE Vec load_first(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
LILLIPUT_INLINE void store_first(float* p, Vec v, int n) { _mm256_maskstore_ps(p, first(n), v); }

LILLIPUT_INLINE void transpose(Vec (&r)[kLanes]) {
  Vec t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

#else

// The compiler makes the best of it: SSE, NEON or plain floats.
constexpr int kLanes = 4;
typedef float Vec __attribute__((vector_size(16)));
LILLIPUT_INLINE Vec zero() { return Vec{0, 0, 0, 0}; }
LILLIPUT_INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
LILLIPUT_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
LILLIPUT_INLINE Vec spread(float x) { return Vec{x, x, x, x}; }
LILLIPUT_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
// b where a is NaN or b is.
LILLIPUT_INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }
LILLIPUT_INLINE Vec smaller(Vec a, Vec b) { return a < b ? a : b; }
struct Mask {
  int from, to;
};
LILLIPUT_INLINE Mask mask_of(int from, int to) { return {from, to}; }
LILLIPUT_INLINE Vec load_if(const float* p, Mask mask) {
  if (mask.from == 0 && mask.to == kLanes) return load(p);
  Vec v = zero();
  for (int i = mask.from; i < mask.to; ++i) v[i] = p[i];
  return v;
}
LILLIPUT_INLINE Vec even_of(Vec a, Vec b) { return Vec{a[0], a[2], b[0], b[2]}; }
LILLIPUT_INLINE Vec odd_of(Vec a, Vec b) { return Vec{a[1], a[3], b[1], b[3]}; }
LILLIPUT_INLINE Vec load_first(const float* p, int n) {
  Vec v = zero();
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
LILLIPUT_INLINE void store_first(float* p, Vec v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}
LILLIPUT_INLINE void transpose(Vec (&r)[kLanes]) {
  for (int i = 0; i < kLanes; ++i)
    for (int j = i + 1; j < kLanes; ++j) {
      const float held = r[i][j];
      r[i][j] = r[j][i];
      r[j][i] = held;
    }
}

#endif

LILLIPUT_INLINE Vec load_up_to(const float* p, int n) { return n >= kLanes ? load(p) : load_first(p, n); }
LILLIPUT_INLINE void store_up_to(float* p, Vec v, int n) {
  if (n >= kLanes) {
    store(p, v);
  } else {
    store_first(p, v, n);
  }
}

LILLIPUT_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
LILLIPUT_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace LILLIPUT_ISA
}  // namespace lilliput
