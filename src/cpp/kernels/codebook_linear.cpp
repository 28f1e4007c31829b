// Linear layers of shared values for few rows: bound by how fast the codes come from memory.
//
// Codes of 4 bits: per 4 outputs and 128 inputs, for each output 64 bytes; byte b holds the codes of inputs b (low half) and
// 64 + b. Codes of 8 bits: per 4 outputs and 64 inputs, for each output 64 bytes. All three kinds of values read the same
// layout. A vector of codes is looked up in registers, by bytes (VPERMB: 64 or 128 values at once), words or floats; what a
// look-up leaves in another order is met by inputs that were put into that order before, once a call.
//
// Values are float32, bfloat16 (times inputs rounded to bfloat16) or int8 (times int8, sums exact in 32 bits).
#include "ahead.h"
#include "floats.h"

namespace lilliput::LILLIPUT_ISA {
namespace {

constexpr int kRows = 4, kBytes = 64;
// Groups of 4 outputs that are read side by side, from distant places: memory serves several streams better than one.
constexpr int kStreams = 4, kAll = kRows * kStreams;
constexpr int kAhead = 1024;
enum Slot { kInputs, kSums };

// Inputs of a piece of 64 bytes.
constexpr int piece_of(int bits) { return bits == 4 ? 2 * kBytes : kBytes; }

LILLIPUT_INLINE float widened(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// To the nearest, to even where two are; NaN stays NaN.
LILLIPUT_INLINE uint16_t narrowed(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

// Where input i of a piece stands when codes are looked up by vectors of `Width` bytes a value.
template <int Bits, int Width>
LILLIPUT_INLINE int place_of(int i) {
#if defined(__AVX512F__)
  if (Bits == 4) {
    // A lane holds 2 * Width codes: code f of lane l is byte f / 2's half f % 2.
    const int half = i / kBytes, byte = i % kBytes;
    return Width == 1 ? i : (byte % Width * 2 + half) * (kBytes / Width) + byte / Width;
  }
  // Bytes of 16-byte lane q are spread over Width vectors.
  const int q = i / 16, in = i % 16, run = 16 / Width;
  return Width == 1 ? i : in / run * (kBytes / Width) + q * run + in % run;
#else
  return i;
#endif
}

// The inputs of every row in whole pieces, in the order of the look-up, as T.
template <int Bits, int Width, typename From, typename T, typename Convert>
T* ordered(const From* x, int64_t rows, int64_t inputs, int64_t pieces, const Convert& convert) {
  constexpr int P = piece_of(Bits);
  uint8_t place[P];
  for (int i = 0; i < P; ++i) place[i] = static_cast<uint8_t>(place_of<Bits, Width>(i));
  T* own = scratch_of<T>(kInputs, rows * pieces * P);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t p = 0; p < pieces; ++p) {
      T* target = own + (r * pieces + p) * P;
      const From* source = x + r * inputs + p * P;
      const int count = static_cast<int>(least(P, inputs - p * P));
      for (int i = 0; i < count; ++i) target[place[i]] = convert(source[i]);
      for (int i = count; i < P; ++i) target[place[i]] = T(0);
    }
  }
  return own;
}

#if defined(__AVX512F__)

// Codes of 64 bytes, or of a half of each.
template <int Bits>
LILLIPUT_INLINE __m512i codes(__m512i bytes, int half) {
  if (Bits == 8) return bytes;
  const __m512i low = _mm512_set1_epi8(15);
  return _mm512_and_si512(half != 0 ? _mm512_srli_epi16(bytes, 4) : bytes, low);
}

// 64 look-ups in a table of 16 (repeated), 64, 128 or 256 bytes.
template <int Values>
struct Bytes {
  static constexpr int N = Values <= 64 ? 1 : Values / 64;
  __m512i part[N];

  explicit Bytes(const uint8_t* table) {
    for (int i = 0; i < N; ++i) part[i] = _mm512_loadu_si512(table + 64 * i);
  }

  __m512i find(__m512i code) const {
    if (N == 1) return Values == 16 ? _mm512_shuffle_epi8(part[0], code) : _mm512_permutexvar_epi8(code, part[0]);
    const __m512i low = _mm512_permutex2var_epi8(part[0], code, part[N == 1 ? 0 : 1]);
    if (N == 2) return low;
    const __m512i high = _mm512_permutex2var_epi8(part[N < 4 ? 0 : 2], code, part[N < 4 ? 0 : 3]);
    return _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(code), high);
  }
};

#endif

// What is looked up, in every form that a kernel may want it in; made once a call.
struct Book {
  alignas(64) float value[256];
  alignas(64) uint8_t plane[4][256];  // the bytes of each value, the lowest first
  alignas(64) uint16_t word[32];      // 16 values twice: a word's index has five bits, of which a code sets four
  alignas(64) uint8_t raised[256];    // int8 values made unsigned by adding 128, 16 of them repeated
  alignas(64) int8_t whole[256];

  // Of floats, which with `narrow` are bfloat16.
  void fill(const float* book, int64_t values, bool narrow) {
    for (int64_t i = 0; i < values; ++i) {
      uint32_t bits;
      __builtin_memcpy(&bits, book + i, sizeof bits);
      if (narrow) bits >>= 16;
      value[i] = book[i];
      for (int k = 0; k < 4; ++k) plane[k][i] = static_cast<uint8_t>(bits >> (8 * k));
      if (i < 16) word[i] = word[i + 16] = static_cast<uint16_t>(bits);
    }
  }

  void fill(const int8_t* book, int64_t values) {
    for (int64_t i = 0; i < 256; ++i) {
      whole[i] = book[i % values];
      raised[i] = static_cast<uint8_t>(whole[i] + 128);
    }
  }
};

// Sums of the outputs of all streams: int8 values and inputs.
template <int Bits, int Values>
void int8_rows(const uint8_t* const* code, const Book& book, const int8_t* x, int64_t pieces, int32_t offset, int32_t* sums) {
#if defined(__AVX512VNNI__)
  // The 128 that was added to values is taken back at the end: `offset` = 128 times the sum of the inputs.
  const Bytes<Values> values(book.raised);
  __m512i sum[kAll];
  LILLIPUT_UNROLL
  for (int r = 0; r < kAll; ++r) sum[r] = _mm512_setzero_si512();
  for (int64_t p = 0; p < pieces; ++p, x += piece_of(Bits)) {
    LILLIPUT_UNROLL
    for (int r = 0; r < kAll; ++r) {
      const uint8_t* own = code[r / kRows] + (p * kRows + r % kRows) * kBytes;
      soon(own + kAhead);
      const __m512i bytes = _mm512_loadu_si512(own);
      sum[r] = _mm512_dpbusd_epi32(sum[r], values.find(codes<Bits>(bytes, 0)), _mm512_loadu_si512(x));
      if (Bits == 4) {
        sum[r] = _mm512_dpbusd_epi32(sum[r], values.find(codes<Bits>(bytes, 1)), _mm512_loadu_si512(x + kBytes));
      }
    }
  }
  for (int r = 0; r < kAll; ++r) sums[r] = _mm512_reduce_add_epi32(sum[r]) - offset;
#else
#if defined(__AVX2__)
  if (Bits == 4) {
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(book.whole)));
    const __m256i low = _mm256_set1_epi8(15);
    __m256i sum[kAll];
    for (int r = 0; r < kAll; ++r) sum[r] = _mm256_setzero_si256();
    for (int64_t p = 0; p < pieces; ++p, x += 2 * kBytes) {
      for (int part = 0; part < 4; ++part) {  // inputs 0.., 32.., 64.., 96..
        const __m128i* input = reinterpret_cast<const __m128i*>(x + 32 * part);
        const __m256i x0 = _mm256_cvtepi8_epi16(_mm_loadu_si128(input)), x1 = _mm256_cvtepi8_epi16(_mm_loadu_si128(input + 1));
        LILLIPUT_UNROLL
        for (int r = 0; r < kAll; ++r) {
          const uint8_t* own = code[r / kRows] + (p * kRows + r % kRows) * kBytes + part % 2 * 32;
          __m256i c = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(own));
          c = _mm256_and_si256(part < 2 ? c : _mm256_srli_epi16(c, 4), low);
          const __m256i v = _mm256_shuffle_epi8(table, c);
          const __m256i v0 = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(v));
          const __m256i v1 = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(v, 1));
          sum[r] = _mm256_add_epi32(sum[r], _mm256_add_epi32(_mm256_madd_epi16(v0, x0), _mm256_madd_epi16(v1, x1)));
        }
      }
    }
    for (int r = 0; r < kAll; ++r) {
      alignas(32) int32_t part[8];
      _mm256_store_si256(reinterpret_cast<__m256i*>(part), sum[r]);
      sums[r] = 0;
      for (int i = 0; i < 8; ++i) sums[r] += part[i];
    }
    return;
  }
#endif
  (void)offset;
  for (int r = 0; r < kAll; ++r) {
    int32_t sum = 0;
    for (int64_t p = 0; p < pieces; ++p) {
      const uint8_t* own = code[r / kRows] + (p * kRows + r % kRows) * kBytes;
      const int8_t* in = x + p * piece_of(Bits);
      for (int b = 0; b < kBytes; ++b) {
        if (Bits == 4) sum += book.whole[own[b] & 15] * in[b] + book.whole[own[b] >> 4] * in[kBytes + b];
        else sum += book.whole[own[b] % Values] * in[b];
      }
    }
    sums[r] = sum;
  }
#endif
}

// The same in float32.
template <int Bits, int Values>
void float_rows(const uint8_t* const* code, const Book& book, const float* x, int64_t pieces, float* sums) {
#if defined(__AVX512F__)
  __m512 sum[kAll];
  LILLIPUT_UNROLL
  for (int r = 0; r < kAll; ++r) sum[r] = _mm512_setzero_ps();
  const __m512 table = _mm512_load_ps(book.value);
  // Of more values each of the four bytes is looked up in a table of its own, and they are woven together.
  const Bytes<Values> b0(book.plane[0]), b1(book.plane[1]), b2(book.plane[2]), b3(book.plane[3]);
  for (int64_t p = 0; p < pieces; ++p, x += piece_of(Bits)) {
    if (Bits == 4) {
      for (int f = 0; f < 8; ++f) {
        const __m512 in = _mm512_loadu_ps(x + 16 * f);
        const __m128i shift = _mm_cvtsi32_si128(4 * f);
        LILLIPUT_UNROLL
        for (int r = 0; r < kAll; ++r) {
          const __m512i bytes = _mm512_loadu_si512(code[r / kRows] + (p * kRows + r % kRows) * kBytes);
          sum[r] = _mm512_fmadd_ps(_mm512_permutexvar_ps(_mm512_srl_epi32(bytes, shift), table), in, sum[r]);
        }
      }
    } else {
      LILLIPUT_UNROLL
      for (int r = 0; r < kAll; ++r) {
        const __m512i c = _mm512_loadu_si512(code[r / kRows] + (p * kRows + r % kRows) * kBytes);
        const __m512i v0 = b0.find(c), v1 = b1.find(c), v2 = b2.find(c), v3 = b3.find(c);
        const __m512i l01 = _mm512_unpacklo_epi8(v0, v1), h01 = _mm512_unpackhi_epi8(v0, v1);
        const __m512i l23 = _mm512_unpacklo_epi8(v2, v3), h23 = _mm512_unpackhi_epi8(v2, v3);
        sum[r] = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_unpacklo_epi16(l01, l23)), _mm512_loadu_ps(x), sum[r]);
        sum[r] = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_unpackhi_epi16(l01, l23)), _mm512_loadu_ps(x + 16), sum[r]);
        sum[r] = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_unpacklo_epi16(h01, h23)), _mm512_loadu_ps(x + 32), sum[r]);
        sum[r] = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_unpackhi_epi16(h01, h23)), _mm512_loadu_ps(x + 48), sum[r]);
      }
    }
  }
  for (int r = 0; r < kAll; ++r) sums[r] = _mm512_reduce_add_ps(sum[r]);
#elif defined(__AVX2__) && defined(__FMA__)
  __m256 sum[kAll];
  for (int r = 0; r < kAll; ++r) sum[r] = _mm256_setzero_ps();
  const __m256 first = _mm256_loadu_ps(book.value), second = _mm256_loadu_ps(book.value + 8);
  const __m256i low = _mm256_set1_epi32(15);
  for (int64_t p = 0; p < pieces; ++p, x += piece_of(Bits)) {
    for (int b = 0; b < kBytes; b += 8) {
      LILLIPUT_UNROLL
      for (int r = 0; r < kAll; ++r) {
        const uint8_t* row = code[r / kRows] + (p * kRows + r % kRows) * kBytes + b;
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row));
        const __m256i c = _mm256_cvtepu8_epi32(bytes);
        if (Bits == 4) {
          for (int half = 0; half < 2; ++half) {
            const __m256i own = half != 0 ? _mm256_srli_epi32(c, 4) : _mm256_and_si256(c, low);
            const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(own, 28));
            const __m256 v = _mm256_blendv_ps(_mm256_permutevar8x32_ps(first, own),
                                              _mm256_permutevar8x32_ps(second, own), upper);
            sum[r] = _mm256_fmadd_ps(v, _mm256_loadu_ps(x + kBytes * half + b), sum[r]);
          }
        } else {
          const __m256i own = _mm256_and_si256(c, _mm256_set1_epi32(Values - 1));
          sum[r] = _mm256_fmadd_ps(_mm256_i32gather_ps(book.value, own, 4), _mm256_loadu_ps(x + b), sum[r]);
        }
      }
    }
  }
  for (int r = 0; r < kAll; ++r) {
    alignas(32) float part[8];
    _mm256_store_ps(part, sum[r]);
    sums[r] = ((part[0] + part[4]) + (part[1] + part[5])) + ((part[2] + part[6]) + (part[3] + part[7]));
  }
#else
  for (int r = 0; r < kAll; ++r) {
    float sum[4] = {};
    for (int64_t p = 0; p < pieces; ++p) {
      const uint8_t* own = code[r / kRows] + (p * kRows + r % kRows) * kBytes;
      const float* in = x + p * piece_of(Bits);
      for (int b = 0; b < kBytes; ++b) {
        if (Bits == 4) sum[b % 4] += book.value[own[b] & 15] * in[b] + book.value[own[b] >> 4] * in[kBytes + b];
        else sum[b % 4] += book.value[own[b] % Values] * in[b];
      }
    }
    sums[r] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
#endif
}

#if defined(__AVX512F__)

// The same by products of pairs of bfloat16.
template <int Bits, int Values>
__attribute__((target("avx512bf16"))) void bfloat_rows(const uint8_t* const* code, const Book& book, const uint16_t* x,
                                                       int64_t pieces, float* sums) {
  const __m512i table = _mm512_load_si512(book.word);
  const Bytes<Values> low(book.plane[0]), high(book.plane[1]);
  __m512 sum[kAll];
  LILLIPUT_UNROLL
  for (int r = 0; r < kAll; ++r) sum[r] = _mm512_setzero_ps();
  for (int64_t p = 0; p < pieces; ++p, x += piece_of(Bits)) {
    const __m512bh in0 = (__m512bh)_mm512_loadu_si512(x), in1 = (__m512bh)_mm512_loadu_si512(x + 32);
    const __m512bh in2 = Bits == 4 ? (__m512bh)_mm512_loadu_si512(x + 64) : in0;
    const __m512bh in3 = Bits == 4 ? (__m512bh)_mm512_loadu_si512(x + 96) : in0;
    LILLIPUT_UNROLL
    for (int r = 0; r < kAll; ++r) {
      const uint8_t* own = code[r / kRows] + (p * kRows + r % kRows) * kBytes;
      soon(own + kAhead);
      const __m512i c = _mm512_loadu_si512(own);
      if (Bits == 4) {
        const __m512i v0 = _mm512_permutexvar_epi16(c, table);
        const __m512i v1 = _mm512_permutexvar_epi16(_mm512_srli_epi16(c, 4), table);
        const __m512i v2 = _mm512_permutexvar_epi16(_mm512_srli_epi16(c, 8), table);
        const __m512i v3 = _mm512_permutexvar_epi16(_mm512_srli_epi16(c, 12), table);
        sum[r] = _mm512_dpbf16_ps(sum[r], (__m512bh)v0, in0);
        sum[r] = _mm512_dpbf16_ps(sum[r], (__m512bh)v1, in1);
        sum[r] = _mm512_dpbf16_ps(sum[r], (__m512bh)v2, in2);
        sum[r] = _mm512_dpbf16_ps(sum[r], (__m512bh)v3, in3);
      } else {
        const __m512i a = low.find(c), b = high.find(c);
        sum[r] = _mm512_dpbf16_ps(sum[r], (__m512bh)_mm512_unpacklo_epi8(a, b), in0);
        sum[r] = _mm512_dpbf16_ps(sum[r], (__m512bh)_mm512_unpackhi_epi8(a, b), in1);
      }
    }
  }
  for (int r = 0; r < kAll; ++r) sums[r] = _mm512_reduce_add_ps(sum[r]);
}

#endif

// Calls body.run<Bits, Values>() for a codebook of 16 values (codes of 4 bits), 64, 128 or 256.
template <typename Body>
void by_size(int64_t values, const Body& body) {
  if (values == 16) body.template run<4, 16>();
  else if (values == 64) body.template run<8, 64>();
  else if (values == 128) body.template run<8, 128>();
  else body.template run<8, 256>();
}

// Calls some(codes of the streams, input row, sums) for every row, and then keep(row, output, sum) for each output.
template <typename Sum, typename Some, typename Keep>
void each(const uint8_t* code, int64_t rows, int64_t pieces, int64_t outputs, const Some& some, const Keep& keep) {
  const int64_t groups = (outputs + kRows - 1) / kRows, turns = (groups + kStreams - 1) / kStreams;
  parallel_for(rows * turns, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / turns, turn = i % turns;
      const uint8_t* stream[kStreams];
      for (int64_t s = 0; s < kStreams; ++s) {
        // A last stream may be shorter: then it repeats its last group, which is dropped.
        stream[s] = code + least(s * turns + turn, groups - 1) * pieces * kRows * kBytes;
      }
      Sum sums[kAll];
      some(stream, row, sums);
      for (int64_t r = 0; r < kAll; ++r) {
        const int64_t output = (r / kRows * turns + turn) * kRows + r % kRows;
        if (output < outputs) keep(row, output, sums[r]);
      }
    }
  });
}

struct Int8 {
  const uint8_t* code;
  const Book& book;
  const int8_t* x;
  int32_t* y;
  int64_t rows, inputs, outputs;

  template <int Bits, int Values>
  void run() const {
    const int64_t pieces = (inputs + piece_of(Bits) - 1) / piece_of(Bits), width = pieces * piece_of(Bits);
    const int8_t* own = ordered<Bits, 1, int8_t, int8_t>(x, rows, inputs, pieces, [](int8_t v) { return v; });
    int32_t* offset = scratch_of<int32_t>(kSums, rows);
    for (int64_t r = 0; r < rows; ++r) {
      offset[r] = 0;
      for (int64_t i = 0; i < width; ++i) offset[r] += 128 * own[r * width + i];
    }
    each<int32_t>(
        code, rows, pieces, outputs,
        [&](const uint8_t* const* c, int64_t r, int32_t* sums) {
          int8_rows<Bits, Values>(c, book, own + r * width, pieces, offset[r], sums);
        },
        [&](int64_t r, int64_t o, int32_t sum) { y[r * outputs + o] = sum; });
  }
};

struct Float {
  const uint8_t* code;
  const Book& book;
  const float* x;
  const float* bias;
  float* y;
  int64_t rows, inputs, outputs;
  bool rounded;  // inputs to bfloat16

  template <int Bits, int Values>
  void run() const {
    constexpr int P = piece_of(Bits);
    const int64_t pieces = (inputs + P - 1) / P, width = pieces * P;
    const auto keep = [&](int64_t r, int64_t o, float sum) {
      y[r * outputs + o] = bias != nullptr ? sum + bias[o] : sum;
    };
#if defined(__AVX512F__)
    if (rounded && has_bf16()) {
      const uint16_t* own = ordered<Bits, 2, float, uint16_t>(
          x, rows, inputs, pieces, [](float v) { return narrowed(v); });
      each<float>(
          code, rows, pieces, outputs,
          [&](const uint8_t* const* c, int64_t r, float* sums) {
            bfloat_rows<Bits, Values>(c, book, own + r * width, pieces, sums);
          },
          keep);
      return;
    }
#endif
    const bool narrow = rounded;
    const float* own = ordered<Bits, 4, float, float>(
        x, rows, inputs, pieces, [narrow](float v) { return narrow ? widened(narrowed(v)) : v; });
    each<float>(
        code, rows, pieces, outputs,
        [&](const uint8_t* const* c, int64_t r, float* sums) { float_rows<Bits, Values>(c, book, own + r * width, pieces, sums); },
        keep);
  }
};

}  // namespace

// y (rows, outputs), int32 = x (rows, inputs) times values of a codebook of 16, 64, 128 or 256 int8.
void codebook_int8(const int8_t* x, const uint8_t* code, const int8_t* book, int32_t* y, int64_t rows, int64_t inputs,
                   int64_t outputs, int64_t values) {
  Book own{};
  own.fill(book, values);
  by_size(values, Int8{code, own, x, y, rows, inputs, outputs});
}

// y (rows, outputs) = x (rows, inputs) times values of a codebook of 16, 64, 128 or 256 floats, plus a bias or none. With
// `rounded` the values are bfloat16 and the inputs are rounded to it.
void codebook_float(const float* x, const uint8_t* code, const float* book, const float* bias, float* y, int64_t rows,
                    int64_t inputs, int64_t outputs, int64_t values, int64_t rounded) {
  Book own{};
#if defined(__AVX512F__)
  own.fill(book, values, rounded != 0 && has_bf16());
#else
  own.fill(book, values, false);
#endif
  by_size(values, Float{code, own, x, bias, y, rows, inputs, outputs, rounded != 0});
}

}  // namespace lilliput::LILLIPUT_ISA

LILLIPUT_KERNEL(codebook_int8)
LILLIPUT_KERNEL(codebook_float)
