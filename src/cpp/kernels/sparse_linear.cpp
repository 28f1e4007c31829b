// Products of a sparse matrix and one vector, for linear layers of few rows: bound by how fast the weights come from memory.
//
// Single weights: the matrix in tiles of 16 outputs by 64 inputs. A tile's 64 inputs fit four vector registers, so that a
// weight's input is found by a permutation of registers, where a gather would read memory sixteen times. A tile is a
// number of steps (the same for all tiles in a column of tiles); a step holds at most one weight of each output. What is
// more than the steps of its tile hold is in lists by rows, `rest`.
//
// `shared` steps are 16 words of 16 bits: bits 0..5 the input within the tile, 6..11 the code of the value, 15 set where
// there is no weight. So no word can point beyond the 64 inputs of its tile or the 64 values of the codebook.
// `float` steps are 16 bytes (the input within the tile, bits 0..5) and 16 floats (0 where there is no weight).
//
// Blocks of 4 or 16 outputs by one input: as in sparse_conv.cpp. Two of four: per 4 rows and 32 inputs, for each row 16
// values; and for each row a word of 16 x 2 bits, where each value's input is among the four of its pair.
#include "ahead.h"
#include "floats.h"

namespace lilliput::LILLIPUT_ISA {
namespace {

constexpr int kRows = 16, kColumns = 64, kValues = 64;
constexpr uint16_t kNone = 0x8000;

struct Rest {
  const int32_t* start;
  const int32_t* column;
  const float* value;
};

#if defined(__AVX512F__)

// The 64 floats of four registers at indices 0..63.
struct Table {
  __m512 part[4];

  explicit Table(const float* p) {
    for (int i = 0; i < 4; ++i) part[i] = _mm512_loadu_ps(p + 16 * i);
  }

  // Bit `Bit` of `where` chooses between the halves; the lower five are those of `index`.
  template <int Bit>
  __m512 find(__m512i index, __m512i where) const {
    const __m512 low = _mm512_permutex2var_ps(part[0], index, part[1]);
    const __m512 high = _mm512_permutex2var_ps(part[2], index, part[3]);
    return _mm512_mask_mov_ps(low, _mm512_test_epi32_mask(where, _mm512_set1_epi32(1 << Bit)), high);
  }
};

template <int Values>
LILLIPUT_INLINE __m512 shared_step(const uint16_t* word, const Table& book, const Table& x, __m512 sum) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(word));
  const __m512i whole = _mm512_cvtepu16_epi32(half);
  const __mmask16 none = _mm256_movepi16_mask(half);
  const __m512i code = _mm512_srli_epi32(whole, 6);
  __m512 value;
  if (Values <= 16) value = _mm512_permutexvar_ps(code, book.part[0]);
  else if (Values <= 32) value = _mm512_permutex2var_ps(book.part[0], code, book.part[1]);
  else value = book.find<11>(code, whole);
  return _mm512_mask3_fmadd_ps(value, x.find<5>(whole, whole), sum, static_cast<__mmask16>(~none));
}

LILLIPUT_INLINE __m512 float_step(const uint8_t* place, const float* value, const Table& x, __m512 sum) {
  const __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(place)));
  return _mm512_fmadd_ps(x.find<5>(index, index), _mm512_loadu_ps(value), sum);
}

using Sums = __m512;
LILLIPUT_INLINE Sums no_sums() { return _mm512_setzero_ps(); }
LILLIPUT_INLINE void add_sums(Sums a, Sums b, float* y) { _mm512_storeu_ps(y, _mm512_add_ps(a, b)); }

#else

struct Table {
  const float* part;
  explicit Table(const float* p) : part(p) {}
};

struct Sums {
  float of[kRows];
};
LILLIPUT_INLINE Sums no_sums() { return Sums{}; }
LILLIPUT_INLINE void add_sums(const Sums& a, const Sums& b, float* y) {
  for (int i = 0; i < kRows; ++i) y[i] = a.of[i] + b.of[i];
}

template <int Values>
LILLIPUT_INLINE Sums shared_step(const uint16_t* word, const Table& book, const Table& x, Sums sum) {
  for (int i = 0; i < kRows; ++i) {
    const uint16_t w = word[i];
    if (w < kNone) sum.of[i] += book.part[(w >> 6) % Values] * x.part[w % kColumns];
  }
  return sum;
}

LILLIPUT_INLINE Sums float_step(const uint8_t* place, const float* value, const Table& x, Sums sum) {
  for (int i = 0; i < kRows; ++i) sum.of[i] += value[i] * x.part[place[i] % kColumns];
  return sum;
}

#endif

template <int Values>
void shared_group(const uint16_t* word, const uint8_t* steps, int64_t tiles, const Table& book, const float* x,
                  float* y) {
  Sums even = no_sums(), odd = no_sums();
  for (int64_t t = 0; t < tiles; ++t) {
    const Table own(x + t * kColumns);
    int k = 0;
    for (; k + 2 <= steps[t]; k += 2, word += 2 * kRows) {
      soon(word + 768);
      even = shared_step<Values>(word, book, own, even);
      odd = shared_step<Values>(word + kRows, book, own, odd);
    }
    if (k < steps[t]) {
      even = shared_step<Values>(word, book, own, even);
      word += kRows;
    }
  }
  add_sums(even, odd, y);
}

void float_group(const uint8_t* place, const float* value, const uint8_t* steps, int64_t tiles, const float* x,
                 float* y) {
  Sums even = no_sums(), odd = no_sums();
  for (int64_t t = 0; t < tiles; ++t) {
    const Table own(x + t * kColumns);
    int k = 0;
    for (; k + 2 <= steps[t]; k += 2, place += 2 * kRows, value += 2 * kRows) {
      soon(value + 512);
      soon(value + 528);
      soon(place + 512);
      even = float_step(place, value, own, even);
      odd = float_step(place + kRows, value + kRows, own, odd);
    }
    if (k < steps[t]) {
      even = float_step(place, value, own, even);
      place += kRows;
      value += kRows;
    }
  }
  add_sums(even, odd, y);
}

// The inputs, zeros after them, of every row: (batch, whole tiles).
const float* padded(const float* x, int64_t batch, int64_t inputs, int64_t width) {
  if (width == inputs) return x;
  float* own = scratch_of<float>(0, batch * width);
  for (int64_t b = 0; b < batch; ++b) {
    std::memcpy(own + b * width, x + b * inputs, static_cast<size_t>(inputs) * sizeof(float));
    std::memset(own + b * width + inputs, 0, static_cast<size_t>(width - inputs) * sizeof(float));
  }
  return own;
}

// Whether the starts ascend from 0 to `count` and all columns are below `columns`.
bool lists_are_right(const int32_t* start, const int32_t* column, int64_t rows, int64_t count, int64_t columns) {
  bool right = start[0] == 0 && start[rows] == count;
  for (int64_t i = 0; i < rows; ++i) right &= start[i] <= start[i + 1];
  uint32_t top = 0;
  for (int64_t k = 0; k < count; ++k) {
    const uint32_t c = static_cast<uint32_t>(column[k]);
    top = c > top ? c : top;
  }
  return right && (count == 0 || top < static_cast<uint64_t>(columns));
}

// Adds the lists and the bias to 16 outputs, as many as there are.
void finish(const float* sums, const Rest& rest, const float* bias, const float* x, int64_t output, int64_t outputs,
            float* y) {
  for (int64_t i = 0; i < kRows && output + i < outputs; ++i) {
    float sum = sums[i];
    for (int32_t k = rest.start[output + i]; k < rest.start[output + i + 1]; ++k) {
      sum += rest.value[k] * x[rest.column[k]];
    }
    y[output + i] = bias != nullptr ? sum + bias[output + i] : sum;
  }
}

// Runs group(index, x, sums) for every 16 outputs of every row of x.
template <typename Group>
void by_groups(const Rest& rest, const float* bias, const float* x, float* y, int64_t batch, int64_t width,
               int64_t outputs, const Group& group) {
  const int64_t groups = (outputs + kRows - 1) / kRows;
  parallel_for(batch * groups, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / groups, g = i % groups;
      alignas(64) float sums[kRows];
      group(g, x + b * width, sums);
      finish(sums, rest, bias, x + b * width, g * kRows, outputs, y + b * outputs);
    }
  });
}

#if defined(__GNUC__)
typedef float Four __attribute__((vector_size(16)));
#endif

// Four outputs of blocks of 4: each block is a vector of four values, times one input.
LILLIPUT_INLINE void block_row4(const int32_t* column, const float* value, int64_t count, const float* x, float* sums) {
  Four sum[4] = {};
  int64_t k = 0;
  for (; k + 4 <= count; k += 4) {
    soon(value + 4 * k + 256);
    LILLIPUT_UNROLL
    for (int i = 0; i < 4; ++i) {
      Four v;
      __builtin_memcpy(&v, value + 4 * (k + i), sizeof v);
      sum[i] += v * x[column[k + i]];
    }
  }
  for (; k < count; ++k) {
    Four v;
    __builtin_memcpy(&v, value + 4 * k, sizeof v);
    sum[0] += v * x[column[k]];
  }
  sum[0] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  __builtin_memcpy(sums, &sum[0], sizeof sum[0]);
}

LILLIPUT_INLINE void block_row16(const int32_t* column, const float* value, int64_t count, const float* x, float* sums) {
  constexpr int V = kRows / kLanes, Chains = kLanes == 16 ? 4 : 2;
  Vec sum[Chains][V];
  for (int i = 0; i < Chains; ++i) {
    for (int v = 0; v < V; ++v) sum[i][v] = spread(0.0f);
  }
  int64_t k = 0;
  for (; k + Chains <= count; k += Chains) {
    LILLIPUT_UNROLL
    for (int i = 0; i < Chains; ++i) {
      const Vec input = spread(x[column[k + i]]);
      const float* own = value + kRows * (k + i);
      soon(own + 512);
      LILLIPUT_UNROLL
      for (int v = 0; v < V; ++v) sum[i][v] = fma(input, load(own + kLanes * v), sum[i][v]);
    }
  }
  for (; k < count; ++k) {
    for (int v = 0; v < V; ++v) {
      sum[0][v] = fma(spread(x[column[k]]), load(value + kRows * k + kLanes * v), sum[0][v]);
    }
  }
  for (int i = 1; i < Chains; ++i) {
    for (int v = 0; v < V; ++v) sum[0][v] += sum[i][v];
  }
  for (int v = 0; v < V; ++v) store(sums + kLanes * v, sum[0][v]);
}

// Four rows of two of four: sums[r] = sum over the pieces of 32 inputs.
#if defined(__AVX512F__)

void two_four_rows(const float* value, const uint32_t* place, int64_t pieces, const float* x, float* sums) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i shift = _mm512_slli_epi32(lane, 1), first = _mm512_slli_epi32(_mm512_srli_epi32(lane, 1), 2);
  const __m512i three = _mm512_set1_epi32(3);
  __m512 sum[4];
  LILLIPUT_UNROLL
  for (int r = 0; r < 4; ++r) sum[r] = _mm512_setzero_ps();
  for (int64_t p = 0; p < pieces; ++p, x += 32, value += 64, place += 4) {
    const __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
    LILLIPUT_UNROLL
    for (int r = 0; r < 4; ++r) {
      soon(value + 16 * r + 768);
      const __m512i bits = _mm512_srlv_epi32(_mm512_set1_epi32(static_cast<int>(place[r])), shift);
      const __m512i index = _mm512_or_epi32(_mm512_and_epi32(bits, three), first);
      sum[r] = _mm512_fmadd_ps(_mm512_permutex2var_ps(low, index, high), _mm512_loadu_ps(value + 16 * r), sum[r]);
    }
  }
  for (int r = 0; r < 4; ++r) sums[r] = _mm512_reduce_add_ps(sum[r]);
}

#elif defined(__AVX2__)

void two_four_rows(const float* value, const uint32_t* place, int64_t pieces, const float* x, float* sums) {
  const __m256i shift = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
  // Of each four values the first two are of the first 8 inputs' pairs, and so on.
  const __m256i first = _mm256_setr_epi32(0, 0, 4, 4, 0, 0, 4, 4), three = _mm256_set1_epi32(3);
  __m256 sum[4];
  for (int r = 0; r < 4; ++r) sum[r] = _mm256_setzero_ps();
  for (int64_t p = 0; p < pieces; ++p, x += 32, value += 64, place += 4) {
    for (int half = 0; half < 2; ++half) {
      const __m256 low = _mm256_loadu_ps(x + 16 * half), high = _mm256_loadu_ps(x + 16 * half + 8);
      LILLIPUT_UNROLL
      for (int r = 0; r < 4; ++r) {
        soon(value + 16 * r + 768);
        const __m256i bits = _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(place[r] >> (16 * half))), shift);
        const __m256i index = _mm256_or_si256(_mm256_and_si256(bits, three), first);
        const __m256 inputs =
            _mm256_blend_ps(_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index), 0xF0);
        sum[r] = _mm256_fmadd_ps(inputs, _mm256_loadu_ps(value + 16 * r + 8 * half), sum[r]);
      }
    }
  }
  for (int r = 0; r < 4; ++r) {
    float parts[8];
    _mm256_storeu_ps(parts, sum[r]);
    sums[r] = ((parts[0] + parts[4]) + (parts[1] + parts[5])) + ((parts[2] + parts[6]) + (parts[3] + parts[7]));
  }
}

#else

void two_four_rows(const float* value, const uint32_t* place, int64_t pieces, const float* x, float* sums) {
  for (int r = 0; r < 4; ++r) {
    float sum[4] = {};
    for (int64_t p = 0; p < pieces; ++p) {
      const uint32_t bits = place[4 * p + r];
      for (int i = 0; i < 16; ++i) {
        sum[i % 4] += value[64 * p + 16 * r + i] * x[32 * p + i / 2 * 4 + ((bits >> (2 * i)) & 3)];
      }
    }
    sums[r] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
}

#endif

}  // namespace

// y (batch, outputs) = x (batch, inputs) times single weights of shared values; `word` is (outputs / 16, steps in all, 16)
// and `book` has 16, 32 or 64 `values`. `status` becomes 1 where `rest` points outside of the matrix.
void sparse_shared(const float* x, const uint16_t* word, const uint8_t* steps, const float* book,
                   const int32_t* rest_start, const int32_t* rest_column, const float* rest_value, const float* bias,
                   float* y, int64_t batch, int64_t inputs, int64_t outputs, int64_t values, int64_t rest_count,
                   int32_t* status) {
  const Rest rest{rest_start, rest_column, rest_value};
  *status = !lists_are_right(rest_start, rest_column, outputs, rest_count, inputs);
  if (*status != 0) return;
  const int64_t tiles = (inputs + kColumns - 1) / kColumns, width = tiles * kColumns;
  int64_t stride = 0;
  for (int64_t t = 0; t < tiles; ++t) stride += steps[t] * kRows;
  float whole[kValues] = {};
  std::memcpy(whole, book, static_cast<size_t>(values) * sizeof(float));
  by_groups(rest, bias, padded(x, batch, inputs, width), y, batch, width, outputs,
            [&](int64_t g, const float* own, float* sums) {
              const Table table(whole);
              if (values <= 16) shared_group<16>(word + g * stride, steps, tiles, table, own, sums);
              else if (values <= 32) shared_group<32>(word + g * stride, steps, tiles, table, own, sums);
              else shared_group<64>(word + g * stride, steps, tiles, table, own, sums);
            });
}

// The same with a float for each weight; `place` and `value` are (outputs / 16, steps in all, 16).
void sparse_single(const float* x, const uint8_t* place, const float* value, const uint8_t* steps,
                   const int32_t* rest_start, const int32_t* rest_column, const float* rest_value, const float* bias,
                   float* y, int64_t batch, int64_t inputs, int64_t outputs, int64_t rest_count, int32_t* status) {
  const Rest rest{rest_start, rest_column, rest_value};
  *status = !lists_are_right(rest_start, rest_column, outputs, rest_count, inputs);
  if (*status != 0) return;
  const int64_t tiles = (inputs + kColumns - 1) / kColumns, width = tiles * kColumns;
  int64_t stride = 0;
  for (int64_t t = 0; t < tiles; ++t) stride += steps[t] * kRows;
  by_groups(rest, bias, padded(x, batch, inputs, width), y, batch, width, outputs,
            [&](int64_t g, const float* own, float* sums) {
              float_group(place + g * stride, value + g * stride, steps, tiles, own, sums);
            });
}

// The same with blocks of 4 or 16 outputs by one input, in lists by rows of blocks.
void sparse_blocks(const float* x, const int32_t* start, const int32_t* column, const float* value, const float* bias,
                   float* y, int64_t batch, int64_t inputs, int64_t outputs, int64_t block, int64_t count,
                   int32_t* status) {
  const int64_t rows = (outputs + block - 1) / block;
  *status = !lists_are_right(start, column, rows, count, inputs);
  if (*status != 0) return;
  parallel_for(batch * rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / rows, row = i % rows, from = start[row], own = start[row + 1] - from;
      float sums[kRows];
      if (block == 4) block_row4(column + from, value + 4 * from, own, x + b * inputs, sums);
      else block_row16(column + from, value + 16 * from, own, x + b * inputs, sums);
      for (int64_t r = 0; r < block && row * block + r < outputs; ++r) {
        y[b * outputs + row * block + r] = bias != nullptr ? sums[r] + bias[row * block + r] : sums[r];
      }
    }
  });
}

// The same with two of each four inputs: `value` (outputs / 4, pieces, 4, 16), `place` (outputs / 4, pieces, 4).
void sparse_two_four(const float* x, const float* value, const uint32_t* place, const float* bias, float* y,
                     int64_t batch, int64_t inputs, int64_t outputs) {
  const int64_t pieces = (inputs + 31) / 32, width = 32 * pieces, groups = (outputs + 3) / 4;
  const float* own = padded(x, batch, inputs, width);
  parallel_for(batch * groups, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / groups, g = i % groups;
      float sums[4];
      two_four_rows(value + g * pieces * 64, place + g * pieces * 4, pieces, own + b * width, sums);
      for (int64_t r = 0; r < 4 && 4 * g + r < outputs; ++r) {
        y[b * outputs + 4 * g + r] = bias != nullptr ? sums[r] + bias[4 * g + r] : sums[r];
      }
    }
  });
}

}  // namespace lilliput::LILLIPUT_ISA

LILLIPUT_KERNEL(sparse_shared)
LILLIPUT_KERNEL(sparse_single)
LILLIPUT_KERNEL(sparse_blocks)
LILLIPUT_KERNEL(sparse_two_four)
