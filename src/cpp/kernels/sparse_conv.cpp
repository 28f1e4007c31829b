// Sparse weights times dense pixels: convolutions of any window, and linear layers of many rows as 1 x 1 convolutions.
//
// The weights are a matrix (outputs, channels / groups * window) in blocks of 1, 4 or 16 outputs by one column: the blocks
// of row i are start[i] .. start[i + 1], each with its column and its values, those beyond the last output zero. A block
// is multiplied by a tile of neighbouring pixels, and added to as many rows of sums in registers: each weight is read once
// a tile.
//
// The input is laid out so that neighbouring outputs always read neighbours ("stretched", Park et al. 2017, arXiv
// 1608.01409): planes [channel][phase of rows][phase of columns][height / stride][width / stride], the padding in place. A
// weight's input is then one offset from the tile's first pixel, whatever its place in the window; sums at the ends of
// rows, that mix two rows, are computed and dropped. A 1 x 1 window without stride and padding reads the input as it is:
// its tile of all channels is copied together first, [channel][pixel], where each channel starts at a cache line.
#include "ahead.h"
#include "floats.h"

namespace lilliput::LILLIPUT_ISA {
namespace {

// Rows of sums that fit the registers, beside the pixels that they share.
constexpr int kRows = kLanes == 16 ? 16 : 4;
// Pixels of a tile, for blocks of 1, 4 and 16 outputs. Of many channels a tile is narrower, so that it stays in a near cache.
constexpr int kTile1 = kLanes == 4 ? 32 : 64, kTile4 = 2 * kLanes, kTile16 = kLanes == 16 ? 16 : 2 * kLanes;
constexpr int kNarrow = 2 * kLanes;
constexpr int64_t kManyChannels = 320;
// Tiles from which on they alone are enough to divide among threads.
constexpr int64_t kEnough = 16;
enum Slot { kOffsets, kColumns, kPlanes, kPanels, kPanel };

// Sums of R outputs over V vectors: out[r * pitch + p] = first[r] + sum over k of value[k * step + r] * x[offset[k] + p].
template <int R, int V>
LILLIPUT_INLINE void tile(const int32_t* offset, const float* value, int64_t count, int step, const float* x,
                          const float* first, float* out, int64_t pitch) {
  Vec sum[R][V];
  Vec other[V];  // a single row has two sets of sums, so that one needn't wait for the product before it
  LILLIPUT_UNROLL
  for (int r = 0; r < R; ++r) {
    LILLIPUT_UNROLL
    for (int v = 0; v < V; ++v) sum[r][v] = spread(first[r]);
  }
  LILLIPUT_UNROLL
  for (int v = 0; v < V; ++v) other[v] = spread(0.0f);
  int64_t k = 0;
  if (R == 1) {
    for (; k + 2 <= count; k += 2) {
      const float *a = x + offset[k], *b = x + offset[k + 1];
      const Vec p = spread(value[k * step]), q = spread(value[(k + 1) * step]);
      LILLIPUT_UNROLL
      for (int v = 0; v < V; ++v) {
        sum[0][v] = fma(p, load(a + kLanes * v), sum[0][v]);
        other[v] = fma(q, load(b + kLanes * v), other[v]);
      }
    }
  }
  for (; k < count; ++k) {
    const float* a = x + offset[k];
    Vec pixels[V];
    LILLIPUT_UNROLL
    for (int v = 0; v < V; ++v) pixels[v] = load(a + kLanes * v);
    LILLIPUT_UNROLL
    for (int r = 0; r < R; ++r) {
      const Vec weight = spread(value[k * step + r]);
      LILLIPUT_UNROLL
      for (int v = 0; v < V; ++v) sum[r][v] = fma(weight, pixels[v], sum[r][v]);
    }
  }
  LILLIPUT_UNROLL
  for (int r = 0; r < R; ++r) {
    LILLIPUT_UNROLL
    for (int v = 0; v < V; ++v) store(out + r * pitch + kLanes * v, R == 1 ? sum[r][v] + other[v] : sum[r][v]);
  }
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

  // Lays out one channel: of each phase every stride-th row and column, zeros around.
  void stretch(const float* x, float* target) const {
    for (int64_t phase = 0; phase < stride[0] * stride[1]; ++phase) {
      const int64_t top = phase / stride[1] - padding[0], left = phase % stride[1] - padding[1];
      for (int64_t i = 0; i < rows; ++i, target += columns) {
        const int64_t row = top + i * stride[0];
        if (row < 0 || row >= height) std::memset(target, 0, static_cast<size_t>(columns) * sizeof(float));
        else stretch_row(x + row * width, left, target);
      }
    }
  }

  void stretch_row(const float* x, int64_t left, float* target) const {
    // Columns first .. last lie within the input.
    const int64_t first = least(columns, left < 0 ? (stride[1] - 1 - left) / stride[1] : 0);
    const int64_t reach = width > left ? (width - left + stride[1] - 1) / stride[1] : 0;
    const int64_t last = most(first, least(columns, reach));
    for (int64_t j = 0; j < first; ++j) target[j] = 0.0f;
    if (stride[1] == 1) std::memcpy(target + first, x + left + first, static_cast<size_t>(last - first) * sizeof(float));
    else for (int64_t j = first; j < last; ++j) target[j] = x[left + j * stride[1]];
    for (int64_t j = last; j < columns; ++j) target[j] = 0.0f;
  }

  // Copies the pixels of a tile that belong to an output to where they are wanted.
  void keep(const float* sums, int64_t pixel, int64_t count, float* y) const {
    if (plain) {
      std::memcpy(y + pixel, sums, static_cast<size_t>(count) * sizeof(float));
      return;
    }
    for (int64_t done = 0; done < count;) {
      const int64_t row = (pixel + done) / columns, column = (pixel + done) % columns;
      const int64_t length = least(columns - column, count - done), wanted = least(out[1] - column, length);
      if (wanted > 0) std::memcpy(y + row * out[1] + column, sums + done, static_cast<size_t>(wanted) * sizeof(float));
      done += length;
    }
  }
};

struct Blocks {
  const int32_t* start;
  const int32_t* column;
  const float* value;
  const float* bias;
};

// The products with one image, by tiles of P pixels, of blocks of B outputs.
template <int B, int P>
struct Product {
  const Conv& conv;
  const Blocks& weight;
  const int32_t* offset;
  const float* x;  // planes, or the input itself
  float* y;

  static constexpr int V = P / kLanes;
  static constexpr int most_of(int a, int b) { return a > b ? a : b; }

  int64_t tiles() const { return (conv.pixels + P - 1) / P; }
  int64_t block_rows() const { return (conv.outputs + B - 1) / B; }

  // Copies a tile of all channels together.
  void gather(int64_t pixel, float* panel) const {
    const int64_t count = least(P, conv.pixels - pixel);
    for (int64_t c = 0; c < conv.channels; ++c, panel += P) {
      const float* source = x + c * conv.plane + pixel;
      if (count == P) {
        // The next tile's pixels are asked for now: each channel's lie far from the others', where no hardware looks ahead.
        LILLIPUT_UNROLL
        for (int i = 0; i < P; i += 16) soon(source + P + i);
        LILLIPUT_UNROLL
        for (int i = 0; i < P; i += kLanes) store(panel + i, load(source + i));
      } else {
        for (int64_t i = 0; i < P; ++i) panel[i] = i < count ? source[i] : 0.0f;
      }
    }
  }

  // Sums of a row of blocks over the first V vectors of a tile.
  template <int V>
  void block_row(int64_t row, const float* pixels, const float* first, float* out, int64_t pitch) const {
    constexpr int R = B < kRows ? B : kRows;
    const int64_t from = weight.start[row], count = weight.start[row + 1] - from;
    for (int r = 0; r < B; r += R) {
      tile<R, V>(offset + from, weight.value + from * B + r, count, B, pixels, first + r, out + r * pitch, pitch);
    }
  }

  void one(int64_t row, const float* pixels, int64_t pixel) const {
    const int64_t output = row * B, there = least(B, conv.outputs - output), wanted = least(P, conv.pixels - pixel);
    float* out = y + output * conv.area();
    if (conv.groups > 1) {
      const int64_t group = output / (conv.outputs / conv.groups);
      pixels += group * (conv.channels / conv.groups) * (conv.plain ? P : conv.plane);
    }
    float first[B];
    for (int i = 0; i < B; ++i) first[i] = weight.bias != nullptr && i < there ? weight.bias[output + i] : 0.0f;
    if (conv.plain && there == B && wanted == P) {
      block_row<V>(row, pixels, first, out + pixel, conv.area());
      return;
    }
    alignas(64) float sums[B * P];
    // The last tile is seldom full.
    if (wanted <= kLanes) block_row<1>(row, pixels, first, sums, P);
    else if (2 * wanted <= P) block_row<most_of(V / 2, 1)>(row, pixels, first, sums, P);
    else block_row<V>(row, pixels, first, sums, P);
    for (int64_t i = 0; i < there; ++i) conv.keep(sums + i * P, pixel, wanted, out + i * conv.area());
  }

  // Few tiles are copied at once, and their rows divided; of many each is copied when its turn comes.
  void run() const {
    const bool few = tiles() < kEnough;
    const int64_t panel_size = conv.channels * P, parts = few ? least(kEnough, block_rows()) : 1;
    float* panels = nullptr;
    if (conv.plain && few) {
      panels = scratch_of<float>(kPanels, tiles() * panel_size);
      for (int64_t t = 0; t < tiles(); ++t) gather(t * P, panels + t * panel_size);
    }
    parallel_for(tiles() * parts, 1, [&](int64_t begin, int64_t end) {
      float* panel = conv.plain && !few ? scratch_of<float>(kPanel, panel_size) : nullptr;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t part = task % parts, t = task / parts;
        const float* pixels = few && conv.plain ? panels + t * panel_size : x + t * P;
        if (panel != nullptr) {
          gather(t * P, panel);
          pixels = panel;
        }
        const int64_t to = block_rows() * (part + 1) / parts;
        for (int64_t row = block_rows() * part / parts; row < to; ++row) one(row, pixels, t * P);
      }
    });
  }
};

// Offsets of all columns, then those of all blocks; false if there is no such column.
bool find_offsets(const Conv& conv, const Blocks& weight, int64_t count, int64_t pitch, int32_t* offset) {
  const int64_t window = conv.window(), columns = conv.channels / conv.groups * window;
  int32_t* of = scratch_of<int32_t>(kColumns, columns);
  for (int64_t c = 0; c < columns; ++c) {
    const int64_t channel = c / window;
    of[c] = static_cast<int32_t>(conv.plain ? channel * pitch : channel * conv.plane + conv.offset(c % window));
  }
  for (int64_t k = 0; k < count; ++k) {
    const uint32_t column = static_cast<uint32_t>(weight.column[k]);
    if (column >= static_cast<uint64_t>(columns)) return false;
    offset[k] = of[column];
  }
  return true;
}

template <int B, int P>
bool run(const Conv& conv, const Blocks& weight, int64_t batch, int64_t count, const float* x, float* y) {
  int32_t* offset = scratch_of<int32_t>(kOffsets, most(count, 1));
  if (!find_offsets(conv, weight, count, P, offset)) return false;
  // A tile may begin at the last pixel and reads to its own end.
  const int64_t size = conv.channels * conv.plane + P;
  float* planes = conv.plain ? nullptr : scratch_of<float>(kPlanes, size);
  for (int64_t image = 0; image < batch; ++image) {
    const float* own = x + image * conv.channels * conv.height * conv.width;
    if (planes != nullptr) {
      parallel_for(conv.channels, 8, [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) conv.stretch(own + c * conv.height * conv.width, planes + c * conv.plane);
      });
      std::memset(planes + conv.channels * conv.plane, 0, P * sizeof(float));
      own = planes;
    }
    Product<B, P>{conv, weight, offset, own, y + image * conv.outputs * conv.area()}.run();
  }
  return true;
}

// The starts must ascend from 0 to the number of blocks.
bool starts_are_right(const int32_t* start, int64_t rows, int64_t count) {
  bool right = start[0] == 0 && start[rows] == count;
  for (int64_t i = 0; i < rows; ++i) right &= start[i] <= start[i + 1];
  return right;
}

}  // namespace

// y = x * weight + bias, NCHW. `sizes`: batch, channels, height, width, outputs, groups, then kernel, stride, padding,
// dilation and size of the output, a pair each. `status` becomes 1 where columns or starts point outside of the matrix:
// then nothing is computed. The caller has checked everything else, and that a plane has fewer than 2^31 floats.
void sparse_conv(const int64_t* sizes, const int32_t* start, const int32_t* column, const float* value,
                 const float* bias, const float* x, float* y, int64_t count, int64_t block, int32_t* status) {
  Conv conv{};
  conv.channels = sizes[1], conv.height = sizes[2], conv.width = sizes[3], conv.outputs = sizes[4];
  conv.groups = sizes[5];
  for (int i = 0; i < 2; ++i) {
    conv.kernel[i] = sizes[6 + i], conv.stride[i] = sizes[8 + i], conv.padding[i] = sizes[10 + i];
    conv.dilation[i] = sizes[12 + i], conv.out[i] = sizes[14 + i];
  }
  conv.lay_out();
  const Blocks weight{start, column, value, bias};
  bool done = starts_are_right(start, (conv.outputs + block - 1) / block, count);
  if (done && block == 16) done = run<16, kTile16>(conv, weight, sizes[0], count, x, y);
  else if (done && block == 4) done = run<4, kTile4>(conv, weight, sizes[0], count, x, y);
  else if (done && conv.plain && conv.channels > kManyChannels) done = run<1, kNarrow>(conv, weight, sizes[0], count, x, y);
  else if (done) done = run<1, kTile1>(conv, weight, sizes[0], count, x, y);
  *status = done ? 0 : 1;
}

}  // namespace lilliput::LILLIPUT_ISA

LILLIPUT_KERNEL(sparse_conv)
