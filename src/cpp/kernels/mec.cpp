// Memory-efficient convolution: of each image only the columns are lowered, and the rows of each output's window, which
// are neighbours there, are multiplied where they lie.
#include "product.h"

namespace lilliput {
namespace LILLIPUT_ISA {

// The paper's L with the outputs' columns innermost: work[group][h][s][c][q] = x[c][h - padding][q stride + s dilation -
// padding], groups * (height + 2 padding) * across * channels * wide floats. Weights are [filter][r][s][c].
void mec(const float* x, const float* weight, const float* bias, float* y, float* work, const int64_t* sizes,
         int64_t rectify) {
  const Geometry g(sizes);
  const int64_t padded = g.height + 2 * g.padding_down, depth = g.depth(), each = g.across * g.channels * g.wide;
  const int64_t parts = column_parts(g.wide);
  for (int64_t n = 0; n < g.batch; ++n) {
    const float* picture = x + n * g.groups * g.channels * g.height * g.width;
    float* out = y + n * g.groups * g.filters * g.high * g.wide;
    parallel_for(g.groups * padded, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t group = i / padded, h = i % padded - g.padding_down;
        const bool inside = h >= 0 && h < g.height;
        float* target = work + i * each;
        for (int64_t s = 0; s < g.across; ++s)
          for (int64_t c = 0; c < g.channels; ++c, target += g.wide)
            take(target, picture + ((group * g.channels + c) * g.height + (inside ? h : 0)) * g.width,
                 s * g.dilation_across - g.padding_across, g.stride_across, inside ? g.width : 0, g.wide);
      }
    });
    parallel_for(g.groups * g.high, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t group = i / g.high, p = i % g.high, filter = group * g.filters;
        const float* rows = work + (group * padded + p * g.stride_down) * each;
        for (int64_t part = 0; part < parts; ++part) {
          const int64_t first = column_of(g.wide, parts, part), last = column_of(g.wide, parts, part + 1);
          strip(g.filters, static_cast<int>(last - first), depth, Left{weight + filter * depth, depth, 1},
                Right{rows + first, g.wide, kLanes},
                Result{out + (filter * g.high + p) * g.wide + first, g.high * g.wide, kLanes,
                       bias == nullptr ? nullptr : bias + filter, rectify != 0});
        }
      }
    });
  }
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput

LILLIPUT_KERNEL(mec)
