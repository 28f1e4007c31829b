// Convolution by Fourier transforms of N x N tiles that overlap: each tile of the input is transformed once for all
// filters, multiplied with their spectra at N^2 / 2 complex frequencies, and each tile of the output transformed back.
//
// A spectrum is N^2 floats, no more than the tile: units of 16 complex numbers, 16 real parts and then 16 imaginary ones.
// With u the frequency down and v the one across, v = 0 .. N/2, lane u < N/2 of v holds X(u, v), lane N/2 + u holds
// i X(-u, v), which two transforms of real numbers give by one addition each; lanes 0 and N/2 hold X(0, v), X(N/2, v).
// What is real there stands together: v = 0 holds X(u, 0), then X(u, N/2) from lane N/2 on, and in lanes 0 and N/2 the
// pairs of real numbers X(0, 0), X(N/2, 0) and X(0, N/2), X(N/2, N/2).
#include "floats.h"

#if defined(__GNUC__)
#define LILLIPUT_UNROLL_ALL _Pragma("GCC unroll 33")
#else
#define LILLIPUT_UNROLL_ALL
#endif

namespace lilliput {
namespace LILLIPUT_ISA {

constexpr int kUnit = 16;  // complex numbers of a unit
// Of 2 pi k / 32.
constexpr float kCosine[] = {1, 0.98078528f, 0.92387953f, 0.83146961f, 0.70710678f, 0.55557023f, 0.38268343f, 0.19509032f};
constexpr float kTangent[] = {0, 0.19891237f, 0.41421356f, 0.66817864f, 1, 1.49660576f, 2.41421356f, 5.02733949f};

// Transforms of N real numbers, a vector of them at a time: X[k], k = 0 .. N/2, of which the ends are real.
template <int N>
struct Fourier {
  static constexpr int kHalf = N / 2, kQuarter = N / 4, kTurn = 32 / N;

  LILLIPUT_INLINE static void forward(const Vec* x, int step, Vec* re, Vec* im) {
    if constexpr (N == 2) {
      re[0] = x[0] + x[step];
      re[1] = x[0] - x[step];
    } else {
      Vec even[2][kQuarter + 1], odd[2][kQuarter + 1];
      Fourier<kHalf>::forward(x, 2 * step, even[0], even[1]);
      Fourier<kHalf>::forward(x + step, 2 * step, odd[0], odd[1]);
      re[0] = even[0][0] + odd[0][0];
      re[kHalf] = even[0][0] - odd[0][0];
      re[kQuarter] = even[0][kQuarter];
      im[kQuarter] = zero() - odd[0][kQuarter];
      LILLIPUT_UNROLL_ALL
      for (int k = 1; k < kQuarter; ++k) {
        const Vec cosine = spread(kCosine[k * kTurn]), tangent = spread(kTangent[k * kTurn]);
        const Vec a = fma(tangent, odd[1][k], odd[0][k]), b = fma(tangent, odd[0][k], zero() - odd[1][k]);
        re[k] = fma(cosine, a, even[0][k]);
        re[kHalf - k] = fma(cosine, zero() - a, even[0][k]);
        im[k] = fma(cosine, zero() - b, even[1][k]);
        im[kHalf - k] = zero() - fma(cosine, b, even[1][k]);
      }
    }
  }

  // N times the numbers.
  LILLIPUT_INLINE static void back(const Vec* re, const Vec* im, Vec* x, int step) {
    if constexpr (N == 2) {
      x[0] = re[0] + re[1];
      x[step] = re[0] - re[1];
    } else {
      Vec even[2][kQuarter + 1], odd[2][kQuarter + 1];
      even[0][0] = re[0] + re[kHalf];
      odd[0][0] = re[0] - re[kHalf];
      even[0][kQuarter] = re[kQuarter] + re[kQuarter];
      odd[0][kQuarter] = spread(-2) * im[kQuarter];
      LILLIPUT_UNROLL_ALL
      for (int k = 1; k < kQuarter; ++k) {
        const Vec cosine = spread(kCosine[k * kTurn]), tangent = spread(kTangent[k * kTurn]);
        even[0][k] = re[k] + re[kHalf - k];
        even[1][k] = im[k] - im[kHalf - k];
        const Vec a = re[k] - re[kHalf - k], b = im[k] + im[kHalf - k];
        odd[0][k] = cosine * fma(tangent, zero() - b, a);
        odd[1][k] = cosine * fma(tangent, a, b);
      }
      Fourier<kHalf>::back(even[0], even[1], x, 2 * step);
      Fourier<kHalf>::back(odd[0], odd[1], x + step, 2 * step);
    }
  }
};

template <int N>
struct Lanes {
  float inner[N], low[N], high[N];  // 0 in lanes 0 and N/2, else 1; 1 below N/2, else 0; the rest
  constexpr Lanes() : inner(), low(), high() {
    for (int i = 0; i < N; ++i) {
      inner[i] = i % (N / 2) == 0 ? 0.0f : 1.0f;
      low[i] = i < N / 2 ? 1.0f : 0.0f;
      high[i] = 1.0f - low[i];
    }
  }
};
template <int N>
static constexpr Lanes<N> kOf{};

// kLanes of N from `lane` on, the halves of the N exchanged.
template <int N>
LILLIPUT_INLINE Vec other_half(const float* row, int lane) {
#if defined(__AVX512F__)
  if constexpr (N == kLanes) {
    const Vec v = load(row);
    return _mm512_shuffle_f32x4(v, v, 0x4e);
  }
#endif
  return load(row + (lane + N / 2) % N);
}

template <int N>
struct Tile {
  static constexpr int kHalf = N / 2, kParts = N / kLanes, kUnits = N * N / 2 / kUnit;
  static_assert(N % kLanes == 0 && (N > kLanes || kLanes == 16), "whole vectors");

  // A square of kLanes x kLanes of rows of N floats, turned.
  LILLIPUT_INLINE static void turned(const float* rows, Vec* x) {
    Vec square[kLanes];
    for (int i = 0; i < kLanes; ++i) square[i] = load(rows + i * N);
    transpose(square);
    for (int i = 0; i < kLanes; ++i) x[i] = square[i];
  }

  LILLIPUT_INLINE static int64_t place(int v, int lane, int64_t step) {
    return (v * (N / kUnit) + lane / kUnit) * step + lane % kUnit;
  }

  // The spectrum of what an image, zeros around it, shows from (top, left) on; `step` floats from unit to unit.
  static void forward(const float* image, int64_t height, int64_t width, int64_t top, int64_t left, float* target,
                      int64_t step) {
    alignas(64) float slots[N * N], halves[N * N];
    for (int part = 0; part < kParts; ++part) {
      const int64_t column = left + part * kLanes;
      const int from = static_cast<int>(least(kLanes, most(0, -column)));
      const int to = static_cast<int>(most(from, least(kLanes, width - column)));
      const Mask mask = mask_of(from, to);
      Vec x[N], re[kHalf + 1], im[kHalf + 1];
      LILLIPUT_UNROLL_ALL
      for (int i = 0; i < N; ++i) {
        const int64_t row = top + i;
        x[i] = row >= 0 && row < height && to > from ? load_if(image + row * width + column, mask) : zero();
      }
      Fourier<N>::forward(x, 1, re, im);
      float* at = slots + part * kLanes;
      LILLIPUT_UNROLL_ALL
      for (int u = 0; u <= kHalf; ++u) store(at + u * N, re[u]);
      LILLIPUT_UNROLL_ALL
      for (int u = 1; u < kHalf; ++u) store(at + (kHalf + u) * N, im[u]);
    }
    for (int part = 0; part < kParts; ++part) {
      Vec x[N], re[kHalf + 1], im[kHalf + 1];
      for (int b = 0; b < kParts; ++b) turned(slots + part * kLanes * N + b * kLanes, x + b * kLanes);
      Fourier<N>::forward(x, 1, re, im);
      float* at = halves + part * kLanes;
      store(at, re[0]);
      store(at + N, re[kHalf]);
      LILLIPUT_UNROLL_ALL
      for (int v = 1; v < kHalf; ++v) {
        store(at + 2 * v * N, re[v]);
        store(at + (2 * v + 1) * N, im[v]);
      }
    }
    for (int lane = 0; lane < N; lane += kLanes) {
      const Vec inner = load(kOf<N>.inner + lane), low = load(kOf<N>.low + lane), high = load(kOf<N>.high + lane);
      float* at = target + place(0, lane, step);
      store(at, fma(low, load(halves + lane), high * other_half<N>(halves + N, lane)));
      store(at + kUnit, fma(low, other_half<N>(halves, lane), high * load(halves + N + lane)));
      for (int v = 1; v < kHalf; ++v) {
        const float *a = halves + 2 * v * N, *b = a + N;
        at = target + place(v, lane, step);
        store(at, fma(inner, zero() - other_half<N>(b, lane), load(a + lane)));
        store(at + kUnit, fma(inner, other_half<N>(a, lane), load(b + lane)));
      }
    }
  }

  // 2 N^2 times the tile of a spectrum, rows of N floats.
  static void back(const float* source, int64_t step, float* rows) {
    alignas(64) float pairs[N * N], halves[N * N];
    // Units first become rows again, so that halves can be exchanged.
    for (int lane = 0; lane < N; lane += kLanes)
      for (int v = 0; v < kHalf; ++v) {
        const float* at = source + place(v, lane, step);
        store(pairs + 2 * v * N + lane, load(at));
        store(pairs + (2 * v + 1) * N + lane, load(at + kUnit));
      }
    for (int part = 0; part < kParts; ++part) {
      const int lane = part * kLanes;
      const Vec two = spread(2), inner = load(kOf<N>.inner + lane), own = two - inner;
      const Vec low = two * load(kOf<N>.low + lane), high = two * load(kOf<N>.high + lane);
      Vec re[kHalf + 1], im[kHalf + 1], x[N];
      re[0] = fma(low, load(pairs + lane), high * other_half<N>(pairs + N, lane));
      re[kHalf] = fma(low, other_half<N>(pairs, lane), high * load(pairs + N + lane));
      LILLIPUT_UNROLL_ALL
      for (int v = 1; v < kHalf; ++v) {
        const float *p = pairs + 2 * v * N, *q = p + N;
        re[v] = fma(inner, other_half<N>(q, lane), own * load(p + lane));
        im[v] = fma(inner, zero() - other_half<N>(p, lane), own * load(q + lane));
      }
      Fourier<N>::back(re, im, x, 1);
      LILLIPUT_UNROLL_ALL
      for (int i = 0; i < N; ++i) store(halves + i * N + lane, x[i]);
    }
    for (int part = 0; part < kParts; ++part) {
      Vec x[N], y[N];
      for (int b = 0; b < kParts; ++b) turned(halves + part * kLanes * N + b * kLanes, x + b * kLanes);
      // Of the imaginary parts the first, at N/2, isn't looked at.
      Fourier<N>::back(x, x + kHalf, y, 1);
      LILLIPUT_UNROLL_ALL
      for (int i = 0; i < N; ++i) store(rows + i * N + part * kLanes, y[i]);
    }
  }
};

// y[i][k] = sum over c of x[i][c] w[k][c], complex numbers lane by lane; where `inner` is 0, pairs of real ones.
struct Spectra {
  const float *x, *w;
  float* y;
  int64_t channels, x_tile, w_filter, y_tile;  // a channel, and a filter of y, is a unit
};

template <int Tiles, int Filters, bool Pairs>
void multiply(const Spectra& s, const float* inner) {
  for (int lane = 0; lane < kUnit; lane += kLanes) {
    const float *x = s.x + lane, *w = s.w + lane;
    const Vec mask = load(inner + lane);
    Vec re[Tiles][Filters], im[Tiles][Filters];
    LILLIPUT_UNROLL_ALL
    for (int i = 0; i < Tiles; ++i)
      LILLIPUT_UNROLL_ALL
      for (int k = 0; k < Filters; ++k) re[i][k] = im[i][k] = zero();
    for (int64_t c = 0; c < s.channels; ++c, x += 2 * kUnit, w += 2 * kUnit) {
      Vec xr[Tiles], xi[Tiles];
      LILLIPUT_UNROLL_ALL
      for (int i = 0; i < Tiles; ++i) xr[i] = load(x + i * s.x_tile), xi[i] = load(x + i * s.x_tile + kUnit);
      LILLIPUT_UNROLL_ALL
      for (int k = 0; k < Filters; ++k) {
        const Vec wr = load(w + k * s.w_filter), wi = load(w + k * s.w_filter + kUnit);
        const Vec cross = Pairs ? wi * mask : wi, other = Pairs ? fma(wr, mask, wi - cross) : wr, less = zero() - cross;
        LILLIPUT_UNROLL_ALL
        for (int i = 0; i < Tiles; ++i) {
          re[i][k] = fma(xi[i], less, fma(xr[i], wr, re[i][k]));
          im[i][k] = fma(xi[i], other, fma(xr[i], cross, im[i][k]));
        }
      }
    }
    LILLIPUT_UNROLL_ALL
    for (int i = 0; i < Tiles; ++i)
      LILLIPUT_UNROLL_ALL
      for (int k = 0; k < Filters; ++k) {
        float* out = s.y + i * s.y_tile + k * 2 * kUnit + lane;
        store(out, re[i][k]);
        store(out + kUnit, im[i][k]);
      }
  }
}

#if defined(__AVX512F__)
constexpr int kMany = 3;  // tiles and filters of one product: twice their square of sums in registers
#else
constexpr int kMany = 2;
#endif

template <int Tiles, bool Pairs>
void multiply_of(int filters, const Spectra& s, const float* inner) {
#if defined(__AVX512F__)
  if (filters == 3) return multiply<Tiles, 3, Pairs>(s, inner);
#endif
  if (filters == 2) return multiply<Tiles, 2, Pairs>(s, inner);
  multiply<Tiles, 1, Pairs>(s, inner);
}

template <bool Pairs>
void multiply_any(int tiles, int filters, const Spectra& s, const float* inner) {
#if defined(__AVX512F__)
  if (tiles == 3) return multiply_of<3, Pairs>(filters, s, inner);
#endif
  if (tiles == 2) return multiply_of<2, Pairs>(filters, s, inner);
  multiply_of<1, Pairs>(filters, s, inner);
}

struct FftSizes {
  // As lilliput/kernels/fft_conv.py writes them down; channels and filters of a group; reach: of the dilated kernel.
  int64_t batch, groups, channels, filters, height, width, padding[2], stride[2], reach[2], high, wide, tiles, in_step,
      out_step;
};

template <int N>
struct FftConv {
  using T = Tile<N>;

  FftSizes s;
  const float *x, *weight, *bias;
  float *y, *into, *out;
  int64_t step[2], dense[2], count[2];  // outputs of stride 1 of a tile, and of all; tiles down and across
  bool rectify;

  void all() {
    const int64_t total = s.batch * count[0] * count[1];
    for (int64_t group = 0; group < s.groups; ++group)
      for (int64_t first = 0; first < total; first += s.tiles) block(group, first, least(s.tiles, total - first));
  }

  void block(int64_t group, int64_t first, int64_t held) const {
    parallel_for(held * s.channels, 4, [&](int64_t i, int64_t end) {
      for (; i < end; ++i) input(group, first + i / s.channels, i % s.channels, into + i * 2 * kUnit);
    });
    const int64_t parts = (s.filters + kMany - 1) / kMany;
    parallel_for(T::kUnits * parts, 1, [&](int64_t i, int64_t end) {
      for (; i < end; ++i) {
        const int64_t part = i % parts, from = s.filters * part / parts;
        multiply_part(group, i / parts, held, from, static_cast<int>(s.filters * (part + 1) / parts - from));
      }
    });
    parallel_for(held * s.filters, 4, [&](int64_t i, int64_t end) {
      for (; i < end; ++i) output(group * s.filters + i % s.filters, first + i / s.filters, out + i * 2 * kUnit);
    });
  }

  int64_t down(int64_t tile) const { return tile / count[1] % count[0] * step[0]; }
  int64_t across(int64_t tile) const { return tile % count[1] * step[1]; }

  void input(int64_t group, int64_t tile, int64_t channel, float* target) const {
    const int64_t plane = (tile / (count[0] * count[1]) * s.groups + group) * s.channels + channel;
    T::forward(x + plane * s.height * s.width, s.height, s.width, down(tile) - s.padding[0], across(tile) - s.padding[1],
               target, s.in_step);
  }

  void multiply_part(int64_t group, int64_t unit, int64_t held, int64_t filter, int filters) const {
    const int64_t row = 2 * kUnit * s.channels, parts = (held + kMany - 1) / kMany;
    const float* w = weight + ((group * T::kUnits + unit) * s.filters + filter) * row;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t from = held * part / parts;
      const int tiles = static_cast<int>(held * (part + 1) / parts - from);
      const Spectra own{into + unit * s.in_step + from * row, w,
                        out + unit * s.out_step + (from * s.filters + filter) * 2 * kUnit, s.channels, row, row,
                        2 * kUnit * s.filters};
      const float* inner = kOf<N>.inner + unit % (N / kUnit) * kUnit;
      if (unit < N / kUnit) {
        multiply_any<true>(tiles, filters, own, inner);
      } else {
        multiply_any<false>(tiles, filters, own, inner);
      }
    }
  }

  void output(int64_t filter, int64_t tile, const float* source) const {
    alignas(64) float rows[N * N];
    T::back(source, s.out_step, rows);
    const int64_t top = down(tile), left = across(tile), n = least(step[1], dense[1] - left);
    const Vec start = spread(bias != nullptr ? bias[filter] : 0);
    const int64_t image = tile / (count[0] * count[1]);
    float* target = y + (image * s.groups * s.filters + filter) * s.high * s.wide;
    for (int64_t i = (s.stride[0] - top % s.stride[0]) % s.stride[0]; i < least(step[0], dense[0] - top);
         i += s.stride[0]) {
      float *row = rows + i * N, *at = target + (top + i) / s.stride[0] * s.wide;
      for (int64_t j = 0; j < n; j += kLanes) {
        const Vec value = load(row + j) + start, kept = rectify ? larger(zero(), value) : value;
        if (s.stride[1] == 1) {
          store_up_to(at + left + j, kept, static_cast<int>(least(kLanes, n - j)));
        } else {
          store(row + j, kept);
        }
      }
      if (s.stride[1] == 1) continue;
      for (int64_t j = (s.stride[1] - left % s.stride[1]) % s.stride[1]; j < n; j += s.stride[1])
        at[(left + j) / s.stride[1]] = row[j];
    }
  }
};

template <int N>
static void run_fft(const FftSizes& s, const float* x, const float* weight, const float* bias, float* y, float* work,
                    bool rectify) {
  FftConv<N> f{s, x, weight, bias, y, work, work + Tile<N>::kUnits * s.in_step, {}, {}, {}, rectify};
  const int64_t sides[] = {s.height, s.width};
  for (int i = 0; i < 2; ++i) {
    f.step[i] = N - s.reach[i] + 1;
    f.dense[i] = sides[i] + 2 * s.padding[i] - s.reach[i] + 1;
    f.count[i] = (f.dense[i] + f.step[i] - 1) / f.step[i];
  }
  f.all();
}

// sizes: those of FftSizes, in order; in_step and out_step, floats from unit to unit of the workspace, are at least 32 a
// tile of each channel, or filter, of a group. work: N^2 / 32 times (in_step + out_step) floats. weight: spectra of the
// kernels, conjugate, over 2 N^2, [group][unit][filter][channel] units. tile: N, 16 or 32.
void fft_conv(const float* x, const float* weight, const float* bias, float* y, float* work, const int64_t* sizes,
              int64_t tile, int64_t rectify) {
  FftSizes s;
  std::memcpy(&s, sizes, sizeof s);
  const auto run = tile == 16 ? run_fft<16> : run_fft<32>;
  run(s, x, weight, bias, y, work, rectify != 0);
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput

LILLIPUT_KERNEL(fft_conv)
