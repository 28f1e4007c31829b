// Convolutions and linear layers of whole numbers, exact in 32 bits, of weights that a few bits describe: sums of powers of
// two (ShiftCNN, INQ), or values of a codebook.
//
// Weights are bytes: [term][group][outputs / 64][place of the window][channels / 2][64][2], zeros where there is none. A
// panel of 64 outputs is decoded to 16 bits when its turn comes, powers of two by shifting, and stays in a near cache while
// all pixels meet it: a shift for each product would take a vector unit as long as two products of 16 bits.
//
// Inputs are int16 in the order [image][row][column][channel], zeros around them. A window's place is one offset from its
// first pixel, so that nothing is lowered. Six pixels meet 64 outputs at a time, two channels in one instruction.
#include "ahead.h"
#include "floats.h"

namespace lilliput::LILLIPUT_ISA {
namespace {

constexpr int kPanel = 64;
enum Slot { kImage, kDecoded };

struct Sizes {
  int64_t batch, channels, height, width, outputs, groups;
  int64_t kernel[2], stride[2], padding[2], dilation[2], out[2];

  explicit Sizes(const int64_t* s) : batch(s[0]), channels(s[1]), height(s[2]), width(s[3]), outputs(s[4]), groups(s[5]) {
    for (int i = 0; i < 2; ++i) {
      kernel[i] = s[6 + i], stride[i] = s[8 + i], padding[i] = s[10 + i], dilation[i] = s[12 + i], out[i] = s[14 + i];
    }
  }

  int64_t even() const { return (channels / groups + 1) / 2 * 2; }  // channels of a group, made even
  int64_t depth() const { return groups * even(); }                 // of a laid out pixel
  int64_t high() const { return height + 2 * padding[0]; }
  int64_t wide() const { return width + 2 * padding[1]; }
  int64_t panels() const { return (outputs / groups + kPanel - 1) / kPanel; }  // of a group
  int64_t panel_size() const { return kernel[0] * kernel[1] * even() * kPanel; }
};

// Lays out one image.
void lay_out(const Sizes& s, const int16_t* x, int16_t* image) {
  std::memset(image, 0, static_cast<size_t>(s.high() * s.wide() * s.depth()) * sizeof(int16_t));
  const int64_t own = s.channels / s.groups;
  parallel_for(s.height, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int16_t* row = image + ((i + s.padding[0]) * s.wide() + s.padding[1]) * s.depth();
      for (int64_t c = 0; c < s.channels; ++c) {
        const int16_t* source = x + (c * s.height + i) * s.width;
        int16_t* target = row + c / own * s.even() + c % own;
        for (int64_t j = 0; j < s.width; ++j) target[j * s.depth()] = source[j];
      }
    }
  });
}

// A byte is 0, or +-(1 + shift) for +-2^shift; terms are added.
struct Powers {
  const int8_t* code;
  int64_t terms, term_size;

  void decode(int64_t from, int64_t count, int16_t* out) const {
    for (int64_t t = 0; t < terms; ++t) {
      const int8_t* own = code + t * term_size + from;
      int64_t i = 0;
#if defined(__AVX512BW__)
      const __m512i one = _mm512_set1_epi16(1);
      for (; i + 32 <= count; i += 32) {
        const __m512i c = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(own + i)));
        // Nothing is left of a one that is shifted by -1: that is 65535 places.
        const __m512i size = _mm512_sllv_epi16(one, _mm512_sub_epi16(_mm512_abs_epi16(c), one));
        const __m512i before = t == 0 ? _mm512_setzero_si512() : _mm512_loadu_si512(out + i);
        const __m512i sum = _mm512_add_epi16(before, size);
        _mm512_storeu_si512(out + i, _mm512_mask_sub_epi16(sum, _mm512_movepi16_mask(c), before, size));
      }
#endif
      for (; i < count; ++i) {
        const int c = own[i], places = (c < 0 ? -c : c) - 1;
        const int size = places < 0 || places > 15 ? 0 : 1 << places;
        out[i] = static_cast<int16_t>((t == 0 ? 0 : out[i]) + (c < 0 ? -size : size));
      }
    }
  }
};

// A byte is the place of a value among 256.
struct Values {
  const uint8_t* code;
  const int8_t* book;

  void decode(int64_t from, int64_t count, int16_t* out) const {
    const uint8_t* own = code + from;
    int64_t i = 0;
#if defined(__AVX512VBMI__)
    __m512i part[4];
    for (int k = 0; k < 4; ++k) part[k] = _mm512_loadu_si512(book + 64 * k);
    for (; i + 64 <= count; i += 64) {
      const __m512i c = _mm512_loadu_si512(own + i);
      const __m512i low = _mm512_permutex2var_epi8(part[0], c, part[1]);
      const __m512i high = _mm512_permutex2var_epi8(part[2], c, part[3]);
      const __m512i v = _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(c), high);
      _mm512_storeu_si512(out + i, _mm512_cvtepi8_epi16(_mm512_castsi512_si256(v)));
      _mm512_storeu_si512(out + i + 32, _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(v, 1)));
    }
#endif
    for (; i < count; ++i) out[i] = book[own[i]];
  }
};

#if defined(__AVX512VNNI__)

constexpr int kPixels = 6;

// sums[pixel][64] of six pixels; `at` is where each one's window begins.
void tile(const Sizes& s, const int16_t* weight, const int16_t* const* at, int32_t* sums) {
  __m512i sum[kPixels][4];
  LILLIPUT_UNROLL
  for (int p = 0; p < kPixels; ++p) {
    LILLIPUT_UNROLL
    for (int v = 0; v < 4; ++v) sum[p][v] = _mm512_setzero_si512();
  }
  for (int64_t r = 0; r < s.kernel[0]; ++r) {
    for (int64_t c = 0; c < s.kernel[1]; ++c) {
      const int64_t place = (r * s.dilation[0] * s.wide() + c * s.dilation[1]) * s.depth();
      const int16_t *p0 = at[0] + place, *p1 = at[1] + place, *p2 = at[2] + place;
      const int16_t *p3 = at[3] + place, *p4 = at[4] + place, *p5 = at[5] + place;
      for (int64_t k = 0; k < s.even(); k += 2, weight += 2 * kPanel) {
        __m512i w[4];
        LILLIPUT_UNROLL
        for (int v = 0; v < 4; ++v) w[v] = _mm512_loadu_si512(weight + 32 * v);
        const auto meet = [&](__m512i* own, const int16_t* x) {
          int32_t pair;
          __builtin_memcpy(&pair, x + k, sizeof pair);
          const __m512i both = _mm512_set1_epi32(pair);
          LILLIPUT_UNROLL
          for (int v = 0; v < 4; ++v) own[v] = _mm512_dpwssd_epi32(own[v], w[v], both);
        };
        meet(sum[0], p0), meet(sum[1], p1), meet(sum[2], p2), meet(sum[3], p3), meet(sum[4], p4), meet(sum[5], p5);
      }
    }
  }
  LILLIPUT_UNROLL
  for (int p = 0; p < kPixels; ++p) {
    LILLIPUT_UNROLL
    for (int v = 0; v < 4; ++v) _mm512_storeu_si512(sums + p * kPanel + 16 * v, sum[p][v]);
  }
}

#elif defined(__AVX2__)

constexpr int kPixels = 4;

void tile(const Sizes& s, const int16_t* weight, const int16_t* const* at, int32_t* sums) {
  for (int part = 0; part < kPanel; part += 16) {
    __m256i sum[kPixels][2];
    for (int p = 0; p < kPixels; ++p) sum[p][0] = sum[p][1] = _mm256_setzero_si256();
    const int16_t* own = weight + 2 * part;
    for (int64_t r = 0; r < s.kernel[0]; ++r) {
      for (int64_t c = 0; c < s.kernel[1]; ++c) {
        const int64_t place = (r * s.dilation[0] * s.wide() + c * s.dilation[1]) * s.depth();
        for (int64_t k = 0; k < s.even(); k += 2, own += 2 * kPanel) {
          const __m256i w0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(own));
          const __m256i w1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(own + 16));
          LILLIPUT_UNROLL
          for (int p = 0; p < kPixels; ++p) {
            int32_t pair;
            __builtin_memcpy(&pair, at[p] + place + k, sizeof pair);
            const __m256i both = _mm256_set1_epi32(pair);
            sum[p][0] = _mm256_add_epi32(sum[p][0], _mm256_madd_epi16(w0, both));
            sum[p][1] = _mm256_add_epi32(sum[p][1], _mm256_madd_epi16(w1, both));
          }
        }
      }
    }
    for (int p = 0; p < kPixels; ++p) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + p * kPanel + part), sum[p][0]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + p * kPanel + part + 8), sum[p][1]);
    }
  }
}

#else

constexpr int kPixels = 2;

void tile(const Sizes& s, const int16_t* weight, const int16_t* const* at, int32_t* sums) {
  for (int p = 0; p < kPixels; ++p) {
    int32_t sum[kPanel] = {};
    const int16_t* own = weight;
    for (int64_t r = 0; r < s.kernel[0]; ++r) {
      for (int64_t c = 0; c < s.kernel[1]; ++c) {
        const int16_t* x = at[p] + (r * s.dilation[0] * s.wide() + c * s.dilation[1]) * s.depth();
        for (int64_t k = 0; k < s.even(); k += 2, own += 2 * kPanel) {
          for (int i = 0; i < kPanel; ++i) sum[i] += own[2 * i] * x[k] + own[2 * i + 1] * x[k + 1];
        }
      }
    }
    std::memcpy(sums + p * kPanel, sum, sizeof sum);
  }
}

#endif

// Pixels begin .. end of one image meet one panel of one group.
void pixels(const Sizes& s, const int16_t* weight, const int16_t* image, int64_t output, int64_t count, int64_t begin,
            int64_t end, int32_t* y) {
  alignas(64) int32_t sums[kPixels * kPanel];
  for (int64_t first = begin; first < end; first += kPixels) {
    const int16_t* at[kPixels];
    for (int p = 0; p < kPixels; ++p) {
      const int64_t pixel = least(first + p, end - 1);
      const int64_t row = pixel / s.out[1] * s.stride[0], column = pixel % s.out[1] * s.stride[1];
      at[p] = image + (row * s.wide() + column) * s.depth();
    }
    tile(s, weight, at, sums);
    for (int p = 0; p < kPixels && first + p < end; ++p) {
      std::memcpy(y + (first + p) * s.outputs + output, sums + p * kPanel, static_cast<size_t>(count) * sizeof(int32_t));
    }
  }
}

template <typename Code>
void convolve(const Sizes& s, const Code& code, const int16_t* x, int32_t* y) {
  const int64_t area = s.out[0] * s.out[1], panels = s.groups * s.panels(), each = s.outputs / s.groups;
  // Few panels are met by several threads, each with a part of the pixels.
  const int64_t parts = panels < 8 && area >= 512 ? 4 : 1, image_size = s.high() * s.wide() * s.depth();
  int16_t* image = scratch_of<int16_t>(kImage, s.batch * image_size);
  for (int64_t b = 0; b < s.batch; ++b) lay_out(s, x + b * s.channels * s.height * s.width, image + b * image_size);
  parallel_for(panels * parts, 1, [&](int64_t begin, int64_t end) {
    int16_t* weight = scratch_of<int16_t>(kDecoded, s.panel_size());
    int64_t decoded = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t panel = task / parts, part = task % parts, group = panel / s.panels(), own = panel % s.panels();
      if (panel != decoded) code.decode(panel * s.panel_size(), s.panel_size(), weight);
      decoded = panel;
      const int64_t first = own * kPanel, count = least(kPanel, each - first);
      for (int64_t b = 0; b < s.batch; ++b) {
        pixels(s, weight, image + b * image_size + group * s.even(), group * each + first, count, area * part / parts,
               area * (part + 1) / parts, y + b * area * s.outputs);
      }
    }
  });
}

}  // namespace

// y, NHWC = x, NCHW, times sums of signed powers of two. `sizes` as in sparse_conv.cpp. Sums must stay within 32 bits and
// weights within 16.
void shift_conv(const int64_t* sizes, const int8_t* code, const int16_t* x, int32_t* y, int64_t terms) {
  const Sizes s(sizes);
  convolve(s, Powers{code, terms, s.groups * s.panels() * s.panel_size()}, x, y);
}

// The same with values of a codebook of 256 int8.
void codebook_conv(const int64_t* sizes, const uint8_t* code, const int8_t* book, const int16_t* x, int32_t* y) {
  convolve(Sizes(sizes), Values{code, book}, x, y);
}

}  // namespace lilliput::LILLIPUT_ISA

LILLIPUT_KERNEL(shift_conv)
LILLIPUT_KERNEL(codebook_conv)
