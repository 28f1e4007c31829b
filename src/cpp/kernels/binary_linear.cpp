// Products of signs: y[row][o] = scale[o] (n - 2 popcount(x[row] ^ w[o])) + bias[o].
#include "bits.h"

namespace lilliput {
namespace LILLIPUT_ISA {

// The signs of each row of floats, as rows of `words` 32-bit words; what lies behind the last sign is 0.
void pack_rows(const float* x, int32_t* packed, int64_t rows, int64_t n, int64_t words) {
  parallel_for(rows, 1 + 65536 / (n + 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      uint32_t* to = reinterpret_cast<uint32_t*>(packed) + row * words;
      pack_signs(x + row * n, n, to);
      for (int64_t k = (n + 31) / 32; k < words; ++k) to[k] = 0;
    }
  });
}

// x: rows x words; weight: [outputs / 64][words][64]; scale and bias may be null.
void binary_linear(const int32_t* x, const int32_t* weight, const float* scale, const float* bias, float* y,
                   int64_t rows, int64_t outputs, int64_t words, int64_t n) {
  const int64_t blocks = (outputs + kBlock - 1) / kBlock;
  const Stretch whole{0, 0, words};
  const Runs runs{&whole, 1, 0, 0};
  const auto work = [&](int64_t b, int64_t row) {
    int64_t at[kRows];
    const int64_t count = rows - row < kRows ? rows - row : kRows, from = b * kBlock;
    for (int64_t i = 0; i < count; ++i) at[i] = (row + i) * words;
    const int64_t width = outputs - from < kBlock ? outputs - from : kBlock;
    alignas(64) int32_t counts[kRows * kBlock];
    block<Xor>(reinterpret_cast<const uint32_t*>(x), at, count, reinterpret_cast<const uint32_t*>(weight) + from * words,
               runs, width, counts);
    for (int64_t i = 0; i < count; ++i) {
      float* to = y + (row + i) * outputs + from;
      for (int64_t o = 0; o < width; ++o) {
        float value = static_cast<float>(static_cast<int32_t>(n) - 2 * counts[i * kBlock + o]);
        if (scale != nullptr) value *= scale[from + o];
        if (bias != nullptr) value += bias[from + o];
        to[o] = value;
      }
    }
  };
  const int64_t tiles = (rows + kRows - 1) / kRows;
  // A block of weights stays in the cache while all rows go by.
  parallel_for(blocks * tiles, 1 + (1 << 14) / (words + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(i / tiles, i % tiles * kRows);
  });
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput

LILLIPUT_KERNEL(pack_rows)
LILLIPUT_KERNEL(binary_linear)
