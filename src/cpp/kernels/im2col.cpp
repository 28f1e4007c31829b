// Convolution as a product of matrices: each image is lowered whole, then multiplied.
#include "product.h"

namespace lilliput {
namespace LILLIPUT_ISA {

// One part of the columns (neighbouring outputs) of one group: rows are (channel, row, column) of the kernel.
static void lower(const Geometry& g, const float* x, float* part, int64_t first, int64_t end) {
  const int64_t columns = end - first;
  for (int64_t c = 0; c < g.channels; ++c)
    for (int64_t r = 0; r < g.down; ++r)
      for (int64_t s = 0; s < g.across; ++s, part += columns)
        for (int64_t at = first; at < end;) {
          const int64_t p = at / g.wide, q = at % g.wide, count = least(g.wide - q, end - at);
          const int64_t h = p * g.stride_down + r * g.dilation_down - g.padding_down;
          const int64_t w = q * g.stride_across + s * g.dilation_across - g.padding_across;
          const bool inside = h >= 0 && h < g.height;
          take(part + at - first, x + (c * g.height + (inside ? h : 0)) * g.width, w, g.stride_across,
               inside ? g.width : 0, count);
          at += count;
        }
}

// work: groups * channels * down * across * high * wide floats; none where `lowered` says that x is lowered as it is.
void im2col(const float* x, const float* weight, const float* bias, float* y, float* work, const int64_t* sizes,
            int64_t lowered, int64_t rectify) {
  const Geometry g(sizes);
  const int64_t depth = g.depth(), columns = g.high * g.wide, parts = column_parts(columns);
  const int64_t image_in = g.groups * g.channels * g.height * g.width, image_out = g.groups * g.filters * columns;
  for (int64_t n = 0; n < g.batch; ++n) {
    const float* picture = x + n * image_in;
    float* out = y + n * image_out;
    if (lowered == 0) {
      parallel_for(g.groups * parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t group = i / parts, part = i % parts;
          const int64_t first = column_of(columns, parts, part), last = column_of(columns, parts, part + 1);
          lower(g, picture + group * g.channels * g.height * g.width, work + (group * columns + first) * depth, first,
                last);
        }
      });
    }
    parallel_for(g.groups * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t group = i / parts, part = i % parts;
        const int64_t first = column_of(columns, parts, part), last = column_of(columns, parts, part + 1);
        const int64_t filter = group * g.filters;
        const Right right = lowered != 0 ? Right{picture + group * g.channels * columns + first, columns, kLanes}
                                         : Right{work + (group * columns + first) * depth, last - first, kLanes};
        strip(g.filters, static_cast<int>(last - first), depth, Left{weight + filter * depth, depth, 1}, right,
              Result{out + filter * columns + first, columns, kLanes, bias == nullptr ? nullptr : bias + filter,
                     rectify != 0});
      }
    });
  }
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput

LILLIPUT_KERNEL(im2col)
