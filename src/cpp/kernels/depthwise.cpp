// Depthwise convolutions: a window for each channel.
//
// A vector of neighbouring columns goes down a plane. With stride 1 each input row is loaded once for each column of the
// window, and multiplied by all rows of the window at once: as many sums go along as the window has rows, and the first of
// them is done. With stride 2 two vectors are parted into even and odd columns, for two columns of the window. What lies
// outside of the plane is masked. Other windows read a stretched plane (stretched.h).
#include "ahead.h"
#include "stretched.h"

namespace lilliput::LILLIPUT_ISA {
namespace {

constexpr int kPlane = 0;  // of the scratch memory

// A channel: its weights, and what its outputs are confined to.
struct Channel {
  const float* weight;
  float bias, low, high;

  LILLIPUT_INLINE void keep(Vec v, float* y, int64_t count) const {
    store_up_to(y, smaller(spread(high), larger(spread(low), v)), static_cast<int>(least(kLanes, count)));
  }
};

// Lanes of a vector from column `at` on that lie within a row.
LILLIPUT_INLINE Mask within(int64_t at, int64_t width) {
  return mask_of(static_cast<int>(most(0, least(kLanes, -at))), static_cast<int>(most(0, least(kLanes, width - at))));
}

// Outputs from column j on, for a window of R rows and C columns and stride 1.
template <int R, int C>
LILLIPUT_INLINE void strip(const Conv& conv, const Channel& own, const Vec* weight, const float* x, int64_t j, float* y) {
  const int64_t left = j - conv.padding[1];
  Mask mask[C];
  LILLIPUT_UNROLL
  for (int c = 0; c < C; ++c) mask[c] = within(left + c, conv.width);
  Vec sum[R];
  LILLIPUT_UNROLL
  for (int k = 0; k < R; ++k) sum[k] = spread(own.bias);
  const int64_t first = -conv.padding[0], last = conv.out[0] + R - 1 - conv.padding[0];
  for (int64_t row = first; row < last; ++row) {
    if (row >= 0 && row < conv.height) {
      const float* line = x + row * conv.width + left;
      Vec v[C];
      LILLIPUT_UNROLL
      for (int c = 0; c < C; ++c) v[c] = load_if(line + c, mask[c]);
      LILLIPUT_UNROLL
      for (int k = 0; k < R; ++k) {
        // Products of a row by themselves: sums wait for one addition a row only.
        Vec part = weight[k * C] * v[0];
        LILLIPUT_UNROLL
        for (int c = 1; c < C; ++c) part = fma(weight[k * C + c], v[c], part);
        sum[R - 1 - k] = sum[R - 1 - k] + part;
      }
    }
    const int64_t done = row - first - (R - 1);
    if (done >= 0) own.keep(sum[0], y + done * conv.out[1] + j, conv.out[1] - j);
    LILLIPUT_UNROLL
    for (int k = 0; k + 1 < R; ++k) sum[k] = sum[k + 1];
    sum[R - 1] = spread(own.bias);
  }
}

// The same for stride 2.
template <int R, int C>
LILLIPUT_INLINE void strip2(const Conv& conv, const Channel& own, const Vec* weight, const float* x, int64_t j, float* y) {
  const int64_t left = 2 * j - conv.padding[1];
  Mask near[C], far[C];
  LILLIPUT_UNROLL
  for (int c = 0; c < C; c += 2) near[c] = within(left + c, conv.width), far[c] = within(left + c + kLanes, conv.width);
  for (int64_t i = 0; i < conv.out[0]; ++i) {
    Vec sum[2] = {spread(own.bias), zero()};
    LILLIPUT_UNROLL
    for (int k = 0; k < R; ++k) {
      const int64_t row = 2 * i - conv.padding[0] + k;
      if (row < 0 || row >= conv.height) continue;
      const float* line = x + row * conv.width + left;
      LILLIPUT_UNROLL
      for (int c = 0; c < C; c += 2) {
        const Vec a = load_if(line + c, near[c]), b = load_if(line + c + kLanes, far[c]);
        sum[0] = fma(weight[k * C + c], even_of(a, b), sum[0]);
        if (c + 1 < C) sum[1] = fma(weight[k * C + c + 1], odd_of(a, b), sum[1]);
      }
    }
    own.keep(sum[0] + sum[1], y + i * conv.out[1] + j, conv.out[1] - j);
  }
}

template <int R, int C>
void outputs(const Conv& conv, const Channel& own, const float* x, float* y) {
  Vec weight[R * C];
  LILLIPUT_UNROLL
  for (int k = 0; k < R * C; ++k) weight[k] = spread(own.weight[k]);
  for (int64_t j = 0; j < conv.out[1]; j += kLanes) {
    if (conv.stride[0] == 1) strip<R, C>(conv, own, weight, x, j, y);
    else strip2<R, C>(conv, own, weight, x, j, y);
  }
}

// The same for any window, from a stretched plane.
void any_outputs(const Conv& conv, const Channel& own, const float* plane, float* y) {
  for (int64_t i = 0; i < conv.out[0]; ++i, plane += conv.columns, y += conv.out[1]) {
    for (int64_t j = 0; j < conv.out[1]; j += kLanes) {
      Vec sum = spread(own.bias);
      for (int64_t k = 0; k < conv.window(); ++k) sum = fma(spread(own.weight[k]), load(plane + conv.offset(k) + j), sum);
      own.keep(sum, y + j, conv.out[1] - j);
    }
  }
}

}  // namespace

// y = x * weight + bias, confined to low .. high, NCHW; as many outputs and groups as channels. `sizes`: see Conv::of;
// weight is [channels][window].
void depthwise_conv(const int64_t* sizes, const float* weight, const float* bias, const float* x, float* y, float low,
                    float high) {
  const Conv conv = Conv::of(sizes);
  const int64_t places = conv.window(), area = conv.height * conv.width;
  const bool even = conv.stride[0] == conv.stride[1] && conv.stride[0] <= 2 && conv.dilation[0] == 1 && conv.dilation[1] == 1;
  const int64_t side = even && conv.kernel[0] == conv.kernel[1] ? conv.kernel[0] : 0;
  parallel_for(sizes[0] * conv.channels, 1 + 16384 / (conv.area() + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t channel = i % conv.channels;
      const Channel own{weight + channel * places, bias == nullptr ? 0.0f : bias[channel], low, high};
      const float* source = x + i * area;
      float* to = y + i * conv.area();
      if (side == 3) {
        outputs<3, 3>(conv, own, source, to);
      } else if (side == 5) {
        outputs<5, 5>(conv, own, source, to);
      } else {
        // The last vector of the last row reads beyond the plane.
        float* plane = scratch_of<float>(kPlane, conv.plane + kLanes);
        conv.stretch(source, plane);
        clear(plane + conv.plane, kLanes);
        any_outputs(conv, own, plane, to);
      }
    }
  });
}

}  // namespace lilliput::LILLIPUT_ISA

LILLIPUT_KERNEL(depthwise_conv)
