// Linear layers of product quantization by look-up: inputs are multiplied by codewords once, outputs add what their codes
// point at.
//
// The codebook is (runs, width, values) with the values filled up to 16, 32 or a multiple of 16; a run's products with all
// its codewords are one table of so many floats. Codes lie by 16 outputs in words of 32 bits, (outputs / 16, pieces, 16):
// eight codes of 4 bits for 16 values, four of 8 bits for more, those of the run first in the lowest bits. So a table of 16
// or 32 floats is one or two registers, in which 16 outputs look up at once.
#include "ahead.h"
#include "floats.h"

namespace lilliput::LILLIPUT_ISA {
namespace {

constexpr int kOutputs = 16, kGroups = 4;
enum Slot { kTables };

struct Layer {
  const float* book;
  const uint32_t* word;
  int64_t inputs, outputs, runs, width, values;

  int fields() const { return values == 16 ? 8 : 4; }  // codes in a word
  int64_t pieces() const { return (runs + fields() - 1) / fields(); }

  // Products of one run's inputs with all its codewords.
  void table(const float* x, int64_t run, float* out) const {
    const int64_t count = least(width, inputs - run * width);
    for (int64_t k = 0; k < values; k += kLanes) {
      Vec sum = zero();
      for (int64_t i = 0; i < count; ++i) {
        sum = fma(spread(x[run * width + i]), load(book + (run * width + i) * values + k), sum);
      }
      store(out + k, sum);
    }
  }
};

#if defined(__AVX512F__)

template <int Values>
LILLIPUT_INLINE __m512 look_up(const float* table, __m512i code) {
  if (Values == 16) return _mm512_permutexvar_ps(code, _mm512_loadu_ps(table));
  if (Values == 32) return _mm512_permutex2var_ps(_mm512_loadu_ps(table), code, _mm512_loadu_ps(table + 16));
  return _mm512_i32gather_ps(code, table, 4);
}

// Sums of 4 x 16 outputs; `step` words lie between the groups. Codes beyond the table are taken modulo its size, or to 255.
template <int Values>
void groups(const Layer& layer, const float* tables, const uint32_t* const* word, float* sums) {
  constexpr int Fields = Values == 16 ? 8 : 4, Bits = 32 / Fields;
  __m512 sum[kGroups];
  LILLIPUT_UNROLL
  for (int g = 0; g < kGroups; ++g) sum[g] = _mm512_setzero_ps();
  const __m512i low = _mm512_set1_epi32((1 << Bits) - 1);
  for (int64_t p = 0; p < layer.pieces(); ++p) {
    __m512i codes[kGroups];
    LILLIPUT_UNROLL
    for (int g = 0; g < kGroups; ++g) codes[g] = _mm512_loadu_si512(word[g] + kOutputs * p);
    LILLIPUT_UNROLL
    for (int f = 0; f < Fields; ++f) {
      const float* own = tables + (p * Fields + f) * layer.values;
      LILLIPUT_UNROLL
      for (int g = 0; g < kGroups; ++g) {
        const __m512i code = Values > 32 ? _mm512_and_si512(codes[g], low) : codes[g];
        sum[g] = _mm512_add_ps(sum[g], look_up<Values>(own, code));
        codes[g] = _mm512_srli_epi32(codes[g], Bits);
      }
    }
  }
  for (int g = 0; g < kGroups; ++g) _mm512_storeu_ps(sums + kOutputs * g, sum[g]);
}

#else

template <int Values>
void groups(const Layer& layer, const float* tables, const uint32_t* const* word, float* sums) {
  constexpr int Fields = Values == 16 ? 8 : 4, Bits = 32 / Fields;
  constexpr uint32_t Low = Values > 32 ? 255 : Values - 1;
  for (int g = 0; g < kGroups; ++g) {
    float sum[kOutputs] = {};
    for (int64_t p = 0; p < layer.pieces(); ++p) {
      for (int f = 0; f < Fields; ++f) {
        const float* own = tables + (p * Fields + f) * layer.values;
        for (int i = 0; i < kOutputs; ++i) sum[i] += own[word[g][kOutputs * p + i] >> (Bits * f) & Low];
      }
    }
    std::memcpy(sums + kOutputs * g, sum, sizeof sum);
  }
}

#endif

template <int Values>
void outputs(const Layer& layer, const float* tables, const float* bias, float* y) {
  const int64_t count = (layer.outputs + kOutputs - 1) / kOutputs;
  parallel_for((count + kGroups - 1) / kGroups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t* word[kGroups];
      float sums[kGroups * kOutputs];
      for (int g = 0; g < kGroups; ++g) {
        word[g] = layer.word + least(i * kGroups + g, count - 1) * layer.pieces() * kOutputs;
      }
      groups<Values>(layer, tables, word, sums);
      const int64_t first = i * kGroups * kOutputs;
      for (int64_t o = first; o < least(first + kGroups * kOutputs, layer.outputs); ++o) {
        y[o] = bias != nullptr ? sums[o - first] + bias[o] : sums[o - first];
      }
    }
  });
}

}  // namespace

// y (rows, outputs) = x (rows, inputs) times the weight of `book` and `word`, plus a bias or none. `values` is 16, 32 or
// 256.
void product_linear(const float* x, const float* book, const uint32_t* word, const float* bias, float* y, int64_t rows,
                    int64_t inputs, int64_t outs, int64_t runs, int64_t width, int64_t values) {
  const Layer layer{book, word, inputs, outs, runs, width, values};
  const int64_t size = layer.pieces() * layer.fields() * values;
  float* tables = scratch_of<float>(kTables, size);
  std::memset(tables + runs * values, 0, static_cast<size_t>(size - runs * values) * sizeof(float));
  for (int64_t r = 0; r < rows; ++r, x += inputs, y += outs) {
    const float* own = x;
    parallel_for(runs, 64, [&](int64_t begin, int64_t end) {
      for (int64_t m = begin; m < end; ++m) layer.table(own, m, tables + m * values);
    });
    if (values == 16) outputs<16>(layer, tables, bias, y);
    else if (values == 32) outputs<32>(layer, tables, bias, y);
    else outputs<256>(layer, tables, bias, y);
  }
}

}  // namespace lilliput::LILLIPUT_ISA

LILLIPUT_KERNEL(product_linear)
