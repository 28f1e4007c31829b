// An input laid out so that neighbouring outputs of a convolution always read neighbours ("stretched", Park et al. 2017,
// arXiv 1608.01409): planes [channel][phase of rows][phase of columns][height / stride][width / stride], the padding in
// place. What a place of the window reads is then one offset from an output's first pixel, whatever the stride.
#pragma once

#include "floats.h"

namespace lilliput {
namespace LILLIPUT_ISA {

// Every second of 2 count - 1 floats.
LILLIPUT_INLINE void every_second(const float* x, float* target, int64_t count) {
  for (int64_t j = 0; j < count; j += kLanes) {
    const int64_t left = 2 * (count - j) - 1;
    const Vec a = load_up_to(x + 2 * j, static_cast<int>(least(kLanes, left)));
    const Vec b = left > kLanes ? load_up_to(x + 2 * j + kLanes, static_cast<int>(least(kLanes, left - kLanes))) : zero();
    store_up_to(target + j, even_of(a, b), static_cast<int>(least(kLanes, count - j)));
  }
}

// Copies few floats, without a call.
LILLIPUT_INLINE void copy(const float* x, float* target, int64_t count) {
  for (int64_t j = 0; j < count; j += kLanes) {
    const int left = static_cast<int>(least(kLanes, count - j));
    store_up_to(target + j, load_up_to(x + j, left), left);
  }
}

LILLIPUT_INLINE void clear(float* target, int64_t count) {
  for (int64_t j = 0; j < count; j += kLanes) store_up_to(target + j, zero(), static_cast<int>(least(kLanes, count - j)));
}

struct Conv {
  int64_t channels, height, width, outputs, groups;
  int64_t kernel[2], stride[2], padding[2], dilation[2], out[2];
  bool plain;                    // the input is its own plane
  int64_t rows, columns, plane;  // of a phase; floats of a channel
  int64_t pixels;                // of the output, those that are dropped counted

  int64_t window() const { return kernel[0] * kernel[1]; }
  int64_t area() const { return out[0] * out[1]; }

  void lay_out() {
    plain = window() == 1 && stride[0] == 1 && stride[1] == 1 && padding[0] == 0 && padding[1] == 0;
    rows = (height + 2 * padding[0] + stride[0] - 1) / stride[0];
    columns = (width + 2 * padding[1] + stride[1] - 1) / stride[1];
    plane = rows * columns * stride[0] * stride[1];
    pixels = plain ? area() : (out[0] - 1) * columns + out[1];
  }

  // Of one place of the window, from the first pixel that the window of output (0, 0) covers.
  int64_t offset(int64_t place) const {
    const int64_t y = place / kernel[1] * dilation[0], x = place % kernel[1] * dilation[1];
    const int64_t phase = y % stride[0] * stride[1] + x % stride[1];
    return (phase * rows + y / stride[0]) * columns + x / stride[1];
  }

  // From pointers to numbers: batch, channels, height, width, outputs, groups, then kernel, stride, padding, dilation and
  // size of the output, a pair each.
  static Conv of(const int64_t* sizes) {
    Conv conv{};
    conv.channels = sizes[1], conv.height = sizes[2], conv.width = sizes[3], conv.outputs = sizes[4];
    conv.groups = sizes[5];
    for (int i = 0; i < 2; ++i) {
      conv.kernel[i] = sizes[6 + i], conv.stride[i] = sizes[8 + i], conv.padding[i] = sizes[10 + i];
      conv.dilation[i] = sizes[12 + i], conv.out[i] = sizes[14 + i];
    }
    conv.lay_out();
    return conv;
  }

  // Lays out one channel: of each phase every stride-th row and column, zeros around.
  void stretch(const float* x, float* target) const {
    for (int64_t phase = 0; phase < stride[0] * stride[1]; ++phase) {
      const int64_t top = phase / stride[1] - padding[0], left = phase % stride[1] - padding[1];
      for (int64_t i = 0; i < rows; ++i, target += columns) {
        const int64_t row = top + i * stride[0];
        if (row < 0 || row >= height) clear(target, columns);
        else stretch_row(x + row * width, left, target);
      }
    }
  }

  void stretch_row(const float* x, int64_t left, float* target) const {
    // Columns first .. last lie within the input.
    const int64_t first = least(columns, left < 0 ? (stride[1] - 1 - left) / stride[1] : 0);
    const int64_t reach = width > left ? (width - left + stride[1] - 1) / stride[1] : 0;
    const int64_t last = most(first, least(columns, reach));
    clear(target, first);
    if (stride[1] == 1) copy(x + left + first, target + first, last - first);
    else if (stride[1] == 2) every_second(x + left + 2 * first, target + first, last - first);
    else for (int64_t j = first; j < last; ++j) target[j] = x[left + j * stride[1]];
    clear(target + last, columns - last);
  }

  // Copies the pixels of a tile that belong to an output to where they are wanted.
  void keep(const float* sums, int64_t pixel, int64_t count, float* y) const {
    if (plain) {
      copy(sums, y + pixel, count);
      return;
    }
    int64_t row = pixel / columns, column = pixel % columns;
    for (int64_t done = 0; done < count; ++row, column = 0) {
      const int64_t length = least(columns - column, count - done), wanted = least(out[1] - column, length);
      if (wanted > 0) copy(sums + done, y + row * out[1] + column, wanted);
      done += length;
    }
  }
};

}  // namespace LILLIPUT_ISA
}  // namespace lilliput
