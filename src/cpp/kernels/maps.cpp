// What stands between the layers of a network: norms, sums, functions of single numbers, pools, and another order of axes.
// Maps are [batch][channels][places] ("first") or [batch][places][channels] ("last").
#include "ahead.h"
#include "floats.h"

namespace lilliput::LILLIPUT_ISA {
namespace {

constexpr int kRow = 0;  // of the scratch memory

struct Numbers {
  const float *scale, *shift, *slope;
  float low, high;
};

// y = confine(bent(scale x + shift) + other), where bent(v) is slope v below 0; `other` may be null.
LILLIPUT_INLINE Vec combined(Vec v, Vec scale, Vec shift, Vec slope, const Numbers& n) {
  if (n.scale != nullptr) v = fma(v, scale, shift);
  if (n.slope != nullptr) v = larger(zero(), v) + slope * smaller(zero(), v);
  return v;
}

// One stretch whose channel is the same all along.
void same_channel(const float* x, const float* other, int64_t channel, const Numbers& n, float* y, int64_t count) {
  const Vec one = spread(1.0f), scale = n.scale == nullptr ? one : spread(n.scale[channel]);
  const Vec shift = n.shift == nullptr ? zero() : spread(n.shift[channel]);
  const Vec slope = n.slope == nullptr ? one : spread(n.slope[channel]);
  const Vec low = spread(n.low), high = spread(n.high);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int left = static_cast<int>(least(kLanes, count - i));
    Vec v = combined(load_up_to(x + i, left), scale, shift, slope, n);
    if (other != nullptr) v = v + load_up_to(other + i, left);
    store_up_to(y + i, smaller(high, larger(low, v)), left);
  }
}

// One place, whose channels lie side by side.
void all_channels(const float* x, const float* other, int64_t channels, const Numbers& n, float* y) {
  const Vec low = spread(n.low), high = spread(n.high);
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int left = static_cast<int>(least(kLanes, channels - c));
    const auto of = [&](const float* numbers) { return numbers == nullptr ? zero() : load_up_to(numbers + c, left); };
    Vec v = combined(load_up_to(x + c, left), of(n.scale), of(n.shift), of(n.slope), n);
    if (other != nullptr) v = v + load_up_to(other + c, left);
    store_up_to(y + c, smaller(high, larger(low, v)), left);
  }
}

constexpr float kLowest = -__builtin_inff();

// Sizes of a pool; a maximum where `average` is 0, else a mean: over the whole window (1), or of what lies inside (2).
struct Pool {
  int64_t batch, channels, height, width, rows, columns, kernel[2], stride[2], padding[2], average;

  static Pool of(const int64_t* s, int64_t average) {
    return {s[0], s[1], s[2], s[3], s[4], s[5], {s[6], s[7]}, {s[8], s[9]}, {s[10], s[11]}, average};
  }

  // The first of a window's places along an axis that lies inside, and the one behind the last.
  LILLIPUT_INLINE int64_t from(int axis, int64_t out) const { return most(0, out * stride[axis] - padding[axis]); }
  LILLIPUT_INLINE int64_t to(int axis, int64_t out, int64_t size) const {
    return least(size, out * stride[axis] - padding[axis] + kernel[axis]);
  }
  LILLIPUT_INLINE float part(int64_t i, int64_t j) const {
    const int64_t inside = (to(0, i, height) - from(0, i)) * (to(1, j, width) - from(1, j));
    return 1.0f / static_cast<float>(average == 2 ? inside : kernel[0] * kernel[1]);
  }
  LILLIPUT_INLINE Vec join(Vec a, Vec b) const { return average != 0 ? a + b : larger(a, b); }
  LILLIPUT_INLINE float nothing() const { return average != 0 ? 0.0f : kLowest; }

  // Floats of a row with its margins, and what vectors at its end read beyond.
  int64_t wide() const { return width + 2 * padding[1] + kernel[1] + 2 * kLanes; }
};

// A row of the plane's rows that output row i covers, joined, between margins: `joined` begins with the left one.
void join_rows(const Pool& p, const float* plane, int64_t i, float* joined) {
  const int64_t first = p.from(0, i), last = p.to(0, i, p.height);
  for (int64_t j = 0; j < p.width; j += kLanes) {
    const int left = static_cast<int>(least(kLanes, p.width - j));
    Vec v = load_up_to(plane + first * p.width + j, left);
    for (int64_t r = first + 1; r < last; ++r) v = p.join(v, load_up_to(plane + r * p.width + j, left));
    store_up_to(joined + p.padding[1] + j, v, left);
  }
}

// The columns of such a row, for strides of 1 and 2.
void join_columns(const Pool& p, const float* joined, int64_t i, float* y) {
  for (int64_t j = 0; j < p.columns; j += kLanes) {
    Vec v = spread(p.nothing());
    if (p.stride[1] == 1) {
      for (int64_t c = 0; c < p.kernel[1]; ++c) v = p.join(v, load(joined + j + c));
    } else {
      for (int64_t c = 0; c < p.kernel[1]; c += 2) {
        const Vec a = load(joined + 2 * j + c), b = load(joined + 2 * j + c + kLanes);
        v = p.join(v, even_of(a, b));
        if (c + 1 < p.kernel[1]) v = p.join(v, odd_of(a, b));
      }
    }
    store_up_to(y + j, v, static_cast<int>(least(kLanes, p.columns - j)));
  }
  for (int64_t j = 0; p.average != 0 && j < p.columns; ++j) y[j] *= p.part(i, j);
}

// The same for any stride.
void join_any_columns(const Pool& p, const float* joined, int64_t i, float* y) {
  for (int64_t j = 0; j < p.columns; ++j) {
    float v = p.nothing();
    for (int64_t c = 0; c < p.kernel[1]; ++c) {
      const float x = joined[j * p.stride[1] + c];
      v = p.average != 0 ? v + x : x > v ? x : v;
    }
    y[j] = p.average != 0 ? v * p.part(i, j) : v;
  }
}

void pool_plane(const Pool& p, const float* plane, float* joined, float* y) {
  for (int64_t j = 0; j < p.wide(); ++j) joined[j] = p.nothing();
  for (int64_t i = 0; i < p.rows; ++i, y += p.columns) {
    join_rows(p, plane, i, joined);
    if (p.stride[1] <= 2) join_columns(p, joined, i, y);
    else join_any_columns(p, joined, i, y);
  }
}

// One place of the output, all channels in vectors.
void pool_place(const Pool& p, const float* image, int64_t i, int64_t j, float* y) {
  const int64_t top = p.from(0, i), bottom = p.to(0, i, p.height), left = p.from(1, j), right = p.to(1, j, p.width);
  const Vec part = spread(p.average != 0 ? p.part(i, j) : 1.0f);
  for (int64_t c = 0; c < p.channels; c += kLanes) {
    const int count = static_cast<int>(least(kLanes, p.channels - c));
    Vec v = spread(p.nothing());
    for (int64_t r = top; r < bottom; ++r) {
      const float* line = image + (r * p.width + left) * p.channels + c;
      for (int64_t k = left; k < right; ++k, line += p.channels) v = p.join(v, load_up_to(line, count));
    }
    store_up_to(y + c, v * part, count);
  }
}

// kLanes x kLanes floats, or what there is of them.
void turn(const float* x, int64_t x_pitch, int64_t rows, int64_t columns, float* y, int64_t y_pitch) {
  if (rows < kLanes || columns < kLanes) {
    for (int64_t j = 0; j < columns; ++j) {
      for (int64_t i = 0; i < rows; ++i) y[j * y_pitch + i] = x[i * x_pitch + j];
    }
    return;
  }
  Vec r[kLanes];
  for (int i = 0; i < kLanes; ++i) r[i] = load(x + i * x_pitch);
  transpose(r);
  for (int i = 0; i < kLanes; ++i) store(y + i * y_pitch, r[i]);
}

}  // namespace

// [rows][channels][places]; scale (with shift), slope and other may be null. Numbers of a channel each.
void combine_maps(const float* x, const float* other, const float* scale, const float* shift, const float* slope,
                  float* y, int64_t rows, int64_t channels, int64_t places, float low, float high) {
  const Numbers numbers{scale, shift, slope, low, high};
  if (places == 1) {
    parallel_for(rows, 1 + 16384 / (channels + 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * channels; i < end * channels; i += channels) {
        all_channels(x + i, other == nullptr ? nullptr : other + i, channels, numbers, y + i);
      }
    });
    return;
  }
  parallel_for(rows * channels, 1 + 16384 / (places + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = i * places;
      same_channel(x + at, other == nullptr ? nullptr : other + at, i % channels, numbers, y + at, places);
    }
  });
}

// sizes: batch, channels, height, width, rows and columns that come out, then kernel, stride and padding, a pair each.
void pool_maps(const int64_t* sizes, const float* x, float* y, int64_t average, int64_t last) {
  const Pool p = Pool::of(sizes, average);
  const int64_t area = p.height * p.width, out = p.rows * p.columns;
  if (last != 0) {
    parallel_for(p.batch * out, 1 + 16384 / (p.channels + 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / out, place = i % out;
        pool_place(p, x + image * area * p.channels, place / p.columns, place % p.columns, y + i * p.channels);
      }
    });
    return;
  }
  parallel_for(p.batch * p.channels, 1 + 16384 / (area + 1), [&](int64_t begin, int64_t end) {
    float* joined = scratch_of<float>(kRow, p.wide());
    for (int64_t i = begin; i < end; ++i) pool_plane(p, x + i * area, joined, y + i * out);
  });
}

// [batch][rows][columns] to [batch][columns][rows].
void turn_maps(const float* x, float* y, int64_t batch, int64_t rows, int64_t columns) {
  const int64_t strips = (columns + kLanes - 1) / kLanes;
  parallel_for(batch * strips, 1 + 1024 / (rows + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / strips * rows * columns, from = i % strips * kLanes;
      const int64_t wide = least(kLanes, columns - from);
      for (int64_t r = 0; r < rows; r += kLanes) {
        turn(x + image + r * columns + from, columns, least(kLanes, rows - r), wide, y + image + from * rows + r, rows);
      }
    }
  });
}

// y = x W^T + bias, confined to low .. high; W is [outputs][inputs].
void dense_linear(const float* x, const float* weight, const float* bias, float* y, int64_t rows, int64_t inputs,
                  int64_t outputs, float low, float high) {
  constexpr int kTogether = 4;
  parallel_for((outputs + kTogether - 1) / kTogether, 1 + 16384 / (inputs + 1), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin * kTogether; o < least(outputs, end * kTogether); o += kTogether) {
      const int64_t there = least(kTogether, outputs - o);
      const float* w[kTogether];
      for (int r = 0; r < kTogether; ++r) w[r] = weight + (o + least(r, there - 1)) * inputs;
      for (int64_t i = 0; i < rows; ++i) {
        const float* own = x + i * inputs;
        Vec sum[kTogether];
        for (int r = 0; r < kTogether; ++r) sum[r] = zero();
        for (int64_t k = 0; k < inputs; k += kLanes) {
          const int left = static_cast<int>(least(kLanes, inputs - k));
          const Vec v = load_up_to(own + k, left);
          LILLIPUT_UNROLL
          for (int r = 0; r < kTogether; ++r) sum[r] = fma(v, load_up_to(w[r] + k, left), sum[r]);
        }
        for (int64_t r = 0; r < there; ++r) {
          float lanes[kLanes], total = bias == nullptr ? 0.0f : bias[o + r];
          store(lanes, sum[r]);
          for (int k = 0; k < kLanes; ++k) total += lanes[k];
          total = total < low ? low : total;
          y[i * outputs + o + r] = total > high ? high : total;
        }
      }
    }
  });
}

}  // namespace lilliput::LILLIPUT_ISA

LILLIPUT_KERNEL(combine_maps)
LILLIPUT_KERNEL(pool_maps)
LILLIPUT_KERNEL(turn_maps)
LILLIPUT_KERNEL(dense_linear)
