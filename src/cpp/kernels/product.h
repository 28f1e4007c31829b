// The inner loop of the convolutions: a few rows of A times a few vectors of B, their sums held in registers.
#pragma once

#include "floats.h"

namespace lilliput {
namespace LILLIPUT_ISA {

// rows * vectors sums, the vectors of B and one number of A must fit into 32 registers (AVX-512) or 16.
#if defined(__AVX512F__)
constexpr int kManyRows = 12;  // with up to two vectors of B
constexpr int kFewRows = 8;    // with up to three
#else
constexpr int kManyRows = 6;
constexpr int kFewRows = 4;
#endif

constexpr int64_t kAhead = 32;  // steps that B is fetched ahead

struct Left {
  const float* a;
  int64_t row, step;  // from one row, and from one d, to the next
};

struct Right {
  const float* b;
  int64_t step, vector;  // from one d, and from one vector, to the next
};

struct Result {
  float* c;
  int64_t row, vector;
  const float* start;  // of the sum of each row; none: 0
  bool rectify;
};

// c[i, j] = start[i] + sum over d < depth of a[i, d] * b[d, j]; of the last vector `last` lanes are there, all of them
// unless Tail.
template <int Rows, int Vectors, bool Tail>
void product(int64_t depth, const Left& left, const Right& right, const Result& result, int last) {
  const int64_t a_row = left.row, b_vector = right.vector;
  const float *a = left.a, *b = right.b;
  Vec sum[Rows][Vectors];
#pragma GCC unroll 12
  for (int i = 0; i < Rows; ++i) {
    const Vec start = result.start != nullptr ? spread(result.start[i]) : zero();
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) sum[i][j] = start;
  }
  for (int64_t d = 0; d < depth; ++d) {
    Vec row[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j)
      row[j] = Tail && j == Vectors - 1 ? load_first(b + j * b_vector, last) : load(b + j * b_vector);
#pragma GCC unroll 12
    for (int i = 0; i < Rows; ++i) {
      const Vec one = spread(a[i * a_row]);
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) sum[i][j] = fma(one, row[j], sum[i][j]);
    }
#if defined(__GNUC__)
    // The processor's own prefetching ends at each page.
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) __builtin_prefetch(b + kAhead * right.step + j * b_vector, 0, 2);
#endif
    a += left.step;
    b += right.step;
  }
#pragma GCC unroll 12
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      const Vec value = result.rectify ? larger(zero(), sum[i][j]) : sum[i][j];
      float* out = result.c + i * result.row + j * result.vector;
      if (Tail && j == Vectors - 1) {
        store_first(out, value, last);
      } else {
        store(out, value);
      }
    }
  }
}

template <int Rows, int Vectors>
void product_of(int64_t depth, const Left& left, const Right& right, const Result& result, int last) {
  if (last == kLanes) {
    product<Rows, Vectors, false>(depth, left, right, result, last);
  } else {
    product<Rows, Vectors, true>(depth, left, right, result, last);
  }
}

template <int Vectors>
void few_rows(int rows, int64_t depth, const Left& left, const Right& right, const Result& result, int last) {
  switch (rows) {
#if defined(__AVX512F__)
    case 8: return product_of<8, Vectors>(depth, left, right, result, last);
    case 7: return product_of<7, Vectors>(depth, left, right, result, last);
    case 6: return product_of<6, Vectors>(depth, left, right, result, last);
    case 5: return product_of<5, Vectors>(depth, left, right, result, last);
#endif
    case 4: return product_of<4, Vectors>(depth, left, right, result, last);
    case 3: return product_of<3, Vectors>(depth, left, right, result, last);
    case 2: return product_of<2, Vectors>(depth, left, right, result, last);
    default: return product_of<1, Vectors>(depth, left, right, result, last);
  }
}

// Any number of rows times `columns` neighbouring columns of B, at most three vectors of them.
inline void strip(int64_t rows, int columns, int64_t depth, Left left, const Right& right, Result result) {
  const int vectors = (columns + kLanes - 1) / kLanes, last = columns - (vectors - 1) * kLanes;
  const int64_t parts = (rows + kFewRows - 1) / kFewRows;
  for (int64_t part = 0; part < parts; ++part) {
    const int count = static_cast<int>(rows * (part + 1) / parts - rows * part / parts);
    if (vectors == 3) {
      few_rows<3>(count, depth, left, right, result, last);
    } else if (vectors == 2) {
      few_rows<2>(count, depth, left, right, result, last);
    } else {
      few_rows<1>(count, depth, left, right, result, last);
    }
    left.a += count * left.row;
    result.c += count * result.row;
    if (result.start != nullptr) result.start += count;
  }
}

// Columns first .. end of part `part` of `parts`, whole vectors but for the last.
inline int64_t column_of(int64_t columns, int64_t parts, int64_t part) {
  const int64_t vectors = (columns + kLanes - 1) / kLanes;
  return least(columns, vectors * part / parts * kLanes);
}

// Into how many parts of at most three vectors columns go.
inline int64_t column_parts(int64_t columns) {
  return ((columns + kLanes - 1) / kLanes + 2) / 3;
}

// target[j] = source[first + j * stride], 0 where that lies outside of [0, width).
inline void take(float* target, const float* source, int64_t first, int64_t stride, int64_t width, int64_t count) {
  const int64_t from = least(count, first < 0 ? (-first + stride - 1) / stride : 0);
  const int64_t to = first >= width ? from : most(from, least(count, (width - 1 - first) / stride + 1));
  for (int64_t j = 0; j < from; ++j) target[j] = 0;
  if (stride == 1) {
    std::memcpy(target + from, source + first + from, sizeof(float) * static_cast<size_t>(to - from));
  } else {
    for (int64_t j = from; j < to; ++j) target[j] = source[first + j * stride];
  }
  for (int64_t j = to; j < count; ++j) target[j] = 0;
}

// Sizes of a convolution, as lilliput/kernels/geometry.py writes them down.
struct Geometry {
  int64_t batch, groups, channels, filters, height, width, down, across, stride_down, stride_across, padding_down,
      padding_across, dilation_down, dilation_across, high, wide;  // channels and filters of a group

  explicit Geometry(const int64_t* n)
      : batch(n[0]), groups(n[1]), channels(n[2]), filters(n[3]), height(n[4]), width(n[5]), down(n[6]), across(n[7]),
        stride_down(n[8]), stride_across(n[9]), padding_down(n[10]), padding_across(n[11]), dilation_down(n[12]),
        dilation_across(n[13]), high(n[14]), wide(n[15]) {}

  int64_t depth() const { return channels * down * across; }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput
