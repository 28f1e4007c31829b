// Winograd's convolution F(m x m, 3 x 3) of stride 1, block by block of tiles: their inputs are transformed, multiplied at
// each of the (m + 2)^2 places, and transformed back, in a workspace that stays in the cache.
#include "product.h"

namespace lilliput {
namespace LILLIPUT_ISA {

// Outputs that stand together in the prepared weights, whatever the instruction set: [place][filters / 16][channel][16].
constexpr int kPanel = 16;

// Transforms of one dimension; B^T, A^T of F(Out, 3) as in Lavin & Gray 2015 (points 0, 1, -1, 2, -2, 1/2, -1/2).
template <int Out>
struct Transform;

LILLIPUT_INLINE Vec times(float a, Vec b) { return spread(a) * b; }

template <>
struct Transform<2> {
  static constexpr int kWide = 4;
  LILLIPUT_INLINE static void into(const Vec (&d)[4], Vec (&v)[4]) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[3] - d[1];
  }
  LILLIPUT_INLINE static void out(const Vec (&m)[4], Vec (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] + m[3];
  }
};

template <>
struct Transform<4> {
  static constexpr int kWide = 6;
  LILLIPUT_INLINE static void into(const Vec (&d)[6], Vec (&v)[6]) {
    const Vec four = spread(4), minus_five = spread(-5), two = spread(2);
    v[0] = fma(four, d[0], fma(minus_five, d[2], d[4]));
    const Vec a = fma(spread(-4), d[2], d[4]), b = fma(spread(-4), d[1], d[3]);
    v[1] = a + b;
    v[2] = a - b;
    const Vec c = d[4] - d[2], e = d[3] - d[1];
    v[3] = fma(two, e, c);
    v[4] = fma(spread(-2), e, c);
    v[5] = fma(four, d[1], fma(minus_five, d[3], d[5]));
  }
  LILLIPUT_INLINE static void out(const Vec (&m)[6], Vec (&y)[4]) {
    const Vec s = m[1] + m[2], t = m[1] - m[2], u = m[3] + m[4], w = m[3] - m[4];
    y[0] = m[0] + s + u;
    y[1] = fma(spread(2), w, t);
    y[2] = fma(spread(4), u, s);
    y[3] = fma(spread(8), w, t) + m[5];
  }
};

template <>
struct Transform<6> {
  static constexpr int kWide = 8;
  LILLIPUT_INLINE static void into(const Vec (&d)[8], Vec (&v)[8]) {
    const Vec far = spread(5.25f), near = spread(-4.25f);
    v[0] = fma(far, d[4] - d[2], d[0] - d[6]);
    v[7] = fma(far, d[3] - d[5], d[7] - d[1]);
    Vec p = fma(near, d[4], d[2] + d[6]), q = fma(near, d[3], d[1] + d[5]);
    v[1] = p + q;
    v[2] = p - q;
    p = fma(spread(0.25f), d[2], fma(spread(-1.25f), d[4], d[6]));
    q = fma(spread(0.5f), d[1], fma(spread(-2.5f), d[3], times(2, d[5])));
    v[3] = p + q;
    v[4] = p - q;
    p = fma(spread(4), d[2], fma(spread(-5), d[4], d[6]));
    q = fma(spread(2), d[1], fma(spread(-2.5f), d[3], times(0.5f, d[5])));
    v[5] = p + q;
    v[6] = p - q;
  }
  LILLIPUT_INLINE static void out(const Vec (&m)[8], Vec (&y)[6]) {
    const Vec s1 = m[1] + m[2], t1 = m[1] - m[2], s2 = m[3] + m[4], t2 = m[3] - m[4], s3 = m[5] + m[6],
              t3 = m[5] - m[6];
    y[0] = m[0] + s1 + s2 + s3;
    y[1] = fma(spread(2), t2, fma(spread(0.5f), t3, t1));
    y[2] = fma(spread(4), s2, fma(spread(0.25f), s3, s1));
    y[3] = fma(spread(8), t2, fma(spread(0.125f), t3, t1));
    y[4] = fma(spread(16), s2, fma(spread(0.0625f), s3, s1));
    y[5] = fma(spread(32), t2, fma(spread(0.03125f), t3, t1)) + m[7];
  }
};

struct WinogradSizes {
  int64_t batch, channels, filters, height, width, padding_down, padding_across;
  int64_t image_in, image_out;  // floats from one image to the next
  int64_t high() const { return height + 2 * padding_down - 2; }
  int64_t wide() const { return width + 2 * padding_across - 2; }
};

LILLIPUT_INLINE int64_t multiple(int64_t n, int64_t of) { return (n + of - 1) / of * of; }

template <int Out>
struct Winograd {
  using T = Transform<Out>;
  static constexpr int kWide = T::kWide, kPlaces = kWide * kWide;
  // Neighbouring tiles of a row that are transformed together: their columns fill whole vectors.
  static constexpr int kTogether = Out == 6 ? 5 : 15;
  static constexpr int kStrip = (kTogether * Out + 2 + kLanes - 1) / kLanes * kLanes;

  struct Run {
    int64_t image, row, tile, count, at;  // at: its first tile in the block
  };

  WinogradSizes s;
  const float *x, *weight, *bias;
  float *y, *into, *out;             // [place][tile][channel] and [place][tile][filter]
  int64_t tiles, in_row, out_row;    // of the workspace
  int64_t down, across, runs;        // rows of tiles, tiles of a row, runs of a row
  bool rectify;

  int64_t before(int64_t run) const { return run / runs * across + least(run % runs * kTogether, across); }

  Run at(int64_t run, int64_t first) const {
    const int64_t row = run / runs, tile = run % runs * kTogether;
    return {row / down, row % down, tile, least(kTogether, across - tile), before(run) - before(first)};
  }

  void all() {
    const int64_t count = s.batch * down * runs;
    for (int64_t first = 0, end = 0; first < count; first = end) {
      for (end = first + 1; end < count && before(end + 1) - before(first) <= tiles; ++end) {
      }
      block(first, end);
    }
  }

  void block(int64_t first, int64_t end) {
    const int64_t held = before(end) - before(first);
    const int64_t slices = (s.channels + kLanes - 1) / kLanes, panels = multiple(s.filters, kPanel) / kPanel;
    parallel_for((end - first) * slices, 1, [&](int64_t i, int64_t last) {
      for (; i < last; ++i) input(at(first + i / slices, first), i % slices * kLanes);
    });
    // Panels of a place in up to four pieces, so that there is work for many threads.
    const int64_t pieces = least(4, (panels + 1) / 2);
    parallel_for(kPlaces * pieces, 1, [&](int64_t i, int64_t last) {
      for (; i < last; ++i) {
        const int64_t place = i / pieces, piece = i % pieces, pairs = (panels + 1) / 2;
        multiply(place, held, pairs * piece / pieces * 2, least(panels, pairs * (piece + 1) / pieces * 2));
      }
    });
    const int64_t outputs = (s.filters + kLanes - 1) / kLanes;
    parallel_for((end - first) * outputs, 1, [&](int64_t i, int64_t last) {
      for (; i < last; ++i) output(at(first + i / outputs, first), i % outputs * kLanes);
    });
  }

  // Pixels with kLanes channels side by side, pixels[row][column].
  void gather(const Run& g, int64_t c, float* pixels) const {
    const int lanes = static_cast<int>(least(kLanes, s.channels - c)), columns = static_cast<int>(g.count * Out + 2);
    const int64_t left = g.tile * Out - s.padding_across, plane = s.height * s.width;
    const float* image = x + g.image * s.image_in + c * plane;
    // Columns that lie in the picture.
    const int from = static_cast<int>(least(columns, most(0, -left)));
    const int to = static_cast<int>(most(from, least(columns, s.width - left)));
    for (int i = 0; i < kWide; ++i) {
      const int64_t h = g.row * Out - s.padding_down + i;
      float* target = pixels + i * kStrip * kLanes;
      const bool inside = h >= 0 && h < s.height;
      for (int j = 0; j < (inside ? from : columns); ++j) store(target + j * kLanes, zero());
      if (!inside) continue;
      const float* source = image + h * s.width + left;
      for (int j = from; j < to; j += kLanes) {
        const int n = to - j < kLanes ? to - j : kLanes;
        Vec square[kLanes];
        for (int l = 0; l < kLanes; ++l) square[l] = l < lanes ? load_up_to(source + l * plane + j, n) : zero();
        transpose(square);
        for (int l = 0; l < n; ++l) store(target + (j + l) * kLanes, square[l]);
      }
      for (int j = to; j < columns; ++j) store(target + j * kLanes, zero());
    }
  }

  void input(const Run& g, int64_t c) const {
    alignas(64) float pixels[kWide * kStrip * kLanes];
    gather(g, c, pixels);
    const int columns = static_cast<int>(g.count * Out + 2);
    for (int j = 0; j < columns; ++j) {
      Vec d[kWide], t[kWide];
      float* at = pixels + j * kLanes;
#pragma GCC unroll 8
      for (int i = 0; i < kWide; ++i) d[i] = load(at + i * kStrip * kLanes);
      T::into(d, t);
#pragma GCC unroll 8
      for (int i = 0; i < kWide; ++i) store(at + i * kStrip * kLanes, t[i]);
    }
    const int64_t step = tiles * in_row;
    for (int i = 0; i < kWide; ++i)
      for (int64_t j = 0; j < g.count; ++j) {
        Vec d[kWide], t[kWide];
        const float* at = pixels + (i * kStrip + j * Out) * kLanes;
#pragma GCC unroll 8
        for (int l = 0; l < kWide; ++l) d[l] = load(at + l * kLanes);
        T::into(d, t);
        float* target = into + i * kWide * step + (g.at + j) * in_row + c;
#pragma GCC unroll 8
        for (int l = 0; l < kWide; ++l) store(target + l * step, t[l]);
      }
  }

  void multiply(int64_t place, int64_t held, int64_t first, int64_t end) const {
    const int64_t count = (held + kManyRows - 1) / kManyRows;
    const float* b = weight + place * multiple(s.filters, kPanel) * s.channels;
    const float* a = into + place * tiles * in_row;
    float* c = out + place * tiles * out_row;
    constexpr int kWidth = 2 * kLanes < kPanel ? 2 * kLanes : kPanel;  // outputs of one product within a panel
    for (int64_t panel = first; panel < end; panel += kLanes == kPanel ? 2 : 1)
      for (int half = 0; half < kPanel; half += kWidth)
        for (int64_t n = 0; n < count; ++n) {
          const int64_t from = held * n / count, rows = held * (n + 1) / count - from;
          const Left left{a + from * in_row, in_row, 1};
          const Right right{b + panel * kPanel * s.channels + half, kPanel,
                            kLanes == kPanel ? kPanel * s.channels : kLanes};
          const Result result{c + from * out_row + panel * kPanel + half, out_row, kLanes, nullptr, false};
          if (kLanes == kPanel && panel + 1 == end) {
            rows_of<1>(static_cast<int>(rows), left, right, result);
          } else {
            rows_of<2>(static_cast<int>(rows), left, right, result);
          }
        }
  }

  template <int Vectors>
  void rows_of(int rows, const Left& left, const Right& right, const Result& result) const {
    switch (rows) {
#if defined(__AVX512F__)
      case 12: return product<12, Vectors, false>(s.channels, left, right, result, kLanes);
      case 11: return product<11, Vectors, false>(s.channels, left, right, result, kLanes);
      case 10: return product<10, Vectors, false>(s.channels, left, right, result, kLanes);
      case 9: return product<9, Vectors, false>(s.channels, left, right, result, kLanes);
      case 8: return product<8, Vectors, false>(s.channels, left, right, result, kLanes);
      case 7: return product<7, Vectors, false>(s.channels, left, right, result, kLanes);
#endif
      case 6: return product<6, Vectors, false>(s.channels, left, right, result, kLanes);
      case 5: return product<5, Vectors, false>(s.channels, left, right, result, kLanes);
      case 4: return product<4, Vectors, false>(s.channels, left, right, result, kLanes);
      case 3: return product<3, Vectors, false>(s.channels, left, right, result, kLanes);
      case 2: return product<2, Vectors, false>(s.channels, left, right, result, kLanes);
      default: return product<1, Vectors, false>(s.channels, left, right, result, kLanes);
    }
  }

  void output(const Run& g, int64_t k) const {
    alignas(64) float pixels[Out * kStrip * kLanes];
    const int64_t step = tiles * out_row;
    const int lanes = static_cast<int>(least(kLanes, s.filters - k));
    const Vec start = bias != nullptr ? load_up_to(bias + k, lanes) : zero();
    for (int64_t j = 0; j < g.count; ++j) {
      const float* source = out + (g.at + j) * out_row + k;
      Vec held[Out][kWide];
#pragma GCC unroll 8
      for (int l = 0; l < kWide; ++l) {
        Vec d[kWide], t[Out];
#pragma GCC unroll 8
        for (int i = 0; i < kWide; ++i) d[i] = load(source + (i * kWide + l) * step);
        T::out(d, t);
#pragma GCC unroll 8
        for (int i = 0; i < Out; ++i) held[i][l] = t[i];
      }
#pragma GCC unroll 8
      for (int i = 0; i < Out; ++i) {
        Vec t[Out];
        T::out(held[i], t);
#pragma GCC unroll 8
        for (int l = 0; l < Out; ++l) {
          const Vec value = t[l] + start;
          store(pixels + (i * kStrip + j * Out + l) * kLanes, rectify ? larger(zero(), value) : value);
        }
      }
    }
    scatter(g, k, lanes, pixels);
  }

  void scatter(const Run& g, int64_t k, int lanes, const float* pixels) const {
    const int64_t high = s.high(), wide = s.wide(), plane = high * wide;
    float* image = y + g.image * s.image_out + k * plane;
    const int columns = static_cast<int>(least(g.count * Out, wide - g.tile * Out));
    for (int i = 0; i < Out && g.row * Out + i < high; ++i) {
      float* target = image + (g.row * Out + i) * wide + g.tile * Out;
      for (int j = 0; j < columns; j += kLanes) {
        const int n = columns - j < kLanes ? columns - j : kLanes;
        Vec square[kLanes];
        for (int l = 0; l < kLanes; ++l) square[l] = load(pixels + (i * kStrip + j + l) * kLanes);
        transpose(square);
        for (int l = 0; l < lanes; ++l) store_up_to(target + l * plane + j, square[l], n);
      }
    }
  }
};

template <int Out>
static void run_winograd(const WinogradSizes& s, const float* x, const float* weight, const float* bias, float* y,
                         float* work, int64_t tiles, int64_t in_row, int64_t out_row, bool rectify) {
  using W = Winograd<Out>;
  const int64_t across = (s.wide() + Out - 1) / Out;
  W{s, x, weight, bias, y, work, work + W::kPlaces * tiles * in_row, tiles, in_row, out_row,
    (s.high() + Out - 1) / Out, across, (across + W::kTogether - 1) / W::kTogether, rectify}
      .all();
}

// sizes: those of WinogradSizes, in order, then tiles of a block (15 or more), floats of a row of the workspace for the
// channels (a multiple of 16 that holds them) and for the filters (likewise). work, 64-byte aligned: places * tiles * (both
// rows) floats. The result of tiles that lie partly outside is cut. output: 2, 4 or 6.
void winograd(const float* x, const float* weight, const float* bias, float* y, float* work, const int64_t* sizes,
              int64_t output, int64_t rectify) {
  const WinogradSizes s{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], sizes[8]};
  const auto run = output == 2 ? run_winograd<2> : output == 4 ? run_winograd<4> : run_winograd<6>;
  run(s, x, weight, bias, y, work, sizes[9], sizes[10], sizes[11], rectify != 0);
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput

LILLIPUT_KERNEL(winograd)
