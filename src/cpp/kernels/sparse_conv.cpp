// Sparse weights times dense pixels: convolutions of any window, and linear layers of many rows as 1 x 1 convolutions.
//
// The weights are a matrix (outputs, channels / groups * window) in blocks of 1, 4, 8 or 16 outputs by one column (8 for
// dense weights, where all columns are there): the blocks
// of row i are start[i] .. start[i + 1], each with its column and its values, those beyond the last output zero. A block
// is multiplied by a tile of neighbouring pixels, and added to as many rows of sums in registers: each weight is read once
// a tile.
//
// The input is stretched (stretched.h): a weight's input is one offset from the tile's first pixel, whatever its place in
// the window; sums at the ends of rows, that mix two rows, are computed and dropped. A 1 x 1 window without stride and padding reads the input as it is:
// its tile of all channels is copied together first, [channel][pixel], where each channel starts at a cache line.
#include "ahead.h"
#include "stretched.h"

namespace lilliput::LILLIPUT_ISA {
namespace {

// Rows of sums that fit the registers, beside the pixels that they share.
constexpr int kRows = kLanes == 16 ? 16 : 4;
// Vectors of pixels of a tile, for blocks of 1, 4, 8 and 16 outputs, unless a caller asks for others.
constexpr int kTile1 = kLanes == 16 ? 4 : 7, kTile4 = 2, kTile8 = 3, kTile16 = kLanes == 16 ? 1 : 2;
// Of many channels a tile is narrower, so that it stays in a near cache.
constexpr int kNarrow = 2;
constexpr int64_t kManyChannels = 320;
// Tiles from which on they alone are enough to divide among threads.
constexpr int64_t kEnough = 16;
enum Slot { kOffsets, kColumns, kPlanes, kPanels, kPanel };

// What sums are confined to when they are stored.
struct Range {
  float low, high;

  LILLIPUT_INLINE Vec operator()(Vec v) const { return smaller(spread(high), larger(spread(low), v)); }
};

// Sums of R outputs over V vectors: out[r * pitch + p] = first[r] + sum over k of value[k * step + r] * x[offset[k] + p],
// confined to a range.
template <int R, int V>
LILLIPUT_INLINE void tile(const int32_t* offset, const float* value, int64_t count, int step, const float* x,
                          const float* first, const Range& range, float* out, int64_t pitch) {
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
    for (int v = 0; v < V; ++v) {
      store(out + r * pitch + kLanes * v, range(R == 1 ? sum[r][v] + other[v] : sum[r][v]));
    }
  }
}

struct Blocks {
  const int32_t* start;
  const float* value;
  const float* bias;
  Range range;
};

// The products with one image, by tiles of V vectors of pixels, of blocks of B outputs.
template <int B, int V>
struct Product {
  const Conv& conv;
  const Blocks& weight;
  const int32_t* offset;
  const float* x;  // planes, or the input itself
  float* y;

  static constexpr int P = V * kLanes, kHalf = (V + 1) / 2;

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

  // Sums of a row of blocks over the first W vectors of a tile.
  template <int W>
  void block_row(int64_t row, const float* pixels, const float* first, float* out, int64_t pitch) const {
    constexpr int R = B < kRows ? B : kRows;
    const int64_t from = weight.start[row], count = weight.start[row + 1] - from;
    for (int r = 0; r < B; r += R) {
      tile<R, W>(offset + from, weight.value + from * B + r, count, B, pixels, first + r, weight.range, out + r * pitch,
                 pitch);
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
    else if (wanted <= kHalf * kLanes) block_row<kHalf>(row, pixels, first, sums, P);
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
bool find_offsets(const Conv& conv, const int32_t* column, int64_t count, int64_t pitch, int32_t* offset) {
  const int64_t window = conv.window(), columns = conv.channels / conv.groups * window;
  int32_t* of = scratch_of<int32_t>(kColumns, columns);
  for (int64_t c = 0; c < columns; ++c) {
    const int64_t channel = c / window;
    of[c] = static_cast<int32_t>(conv.plain ? channel * pitch : channel * conv.plane + conv.offset(c % window));
  }
  for (int64_t k = 0; k < count; ++k) {
    const uint32_t place = static_cast<uint32_t>(column[k]);
    if (place >= static_cast<uint64_t>(columns)) return false;
    offset[k] = of[place];
  }
  return true;
}

template <int B, int V>
void run(const Conv& conv, const Blocks& weight, int64_t batch, const int32_t* offset, const float* x, float* y) {
  constexpr int P = V * kLanes;
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
    Product<B, V>{conv, weight, offset, own, y + image * conv.outputs * conv.area()}.run();
  }
}

// The starts must ascend from 0 to the number of blocks.
bool starts_are_right(const int32_t* start, int64_t rows, int64_t count) {
  bool right = start[0] == 0 && start[rows] == count;
  for (int64_t i = 0; i < rows; ++i) right &= start[i] <= start[i + 1];
  return right;
}

// Vectors of a tile: as asked for, if there is a kernel for it, or as is usual.
int64_t vectors_of(const Conv& conv, int64_t block, int64_t asked) {
  if (block == 16) return kTile16;
  if (block == 8) return kTile8;
  if (block == 4) return asked == 3 || (kRows == 16 && (asked == 4 || asked == 6)) ? asked : kTile4;
  if (asked == 2 || asked == 4 || asked == 7 || asked == 13) return asked;
  return conv.plain && conv.channels > kManyChannels ? kNarrow : kTile1;
}

}  // namespace

// The offsets of all columns, for a kernel that is called often. `sizes` as below.
void sparse_conv_offsets(const int64_t* sizes, const int32_t* start, const int32_t* column, int32_t* offset,
                         int64_t count, int64_t block, int64_t asked, int32_t* status) {
  const Conv conv = Conv::of(sizes);
  const int64_t pitch = vectors_of(conv, block, asked) * kLanes;
  const bool right = starts_are_right(start, (conv.outputs + block - 1) / block, count);
  *status = right && find_offsets(conv, column, count, pitch, offset) ? 0 : 1;
}

// y = x * weight + bias, confined to low .. high, NCHW. `sizes`: see Conv::of. `status` becomes 1 where columns or starts
// point outside of the matrix: then nothing is computed. With `offset`, of sparse_conv_offsets, they have been checked.
// `asked`: vectors of a tile, 0 for the usual ones.
// The caller has checked everything else, and that a plane has fewer than 2^31 floats.
void sparse_conv(const int64_t* sizes, const int32_t* start, const int32_t* column, const float* value,
                 const float* bias, const float* x, float* y, int64_t count, int64_t block, int64_t asked,
                 int32_t* status, const int32_t* offset, float low, float high) {
  const Conv conv = Conv::of(sizes);
  const Blocks weight{start, value, bias, {low, high}};
  const int64_t vectors = vectors_of(conv, block, asked);
  *status = 0;
  if (offset == nullptr) {
    int32_t* found = scratch_of<int32_t>(kOffsets, most(count, 1));
    const bool right = starts_are_right(start, (conv.outputs + block - 1) / block, count);
    if (!right || !find_offsets(conv, column, count, vectors * kLanes, found)) {
      *status = 1;
      return;
    }
    offset = found;
  }
  const auto with = [&](auto run_of) { run_of(conv, weight, sizes[0], offset, x, y); };
  if (block == 16) with(run<16, kTile16>);
  else if (block == 8) with(run<8, kTile8>);
  else if (block == 4 && vectors == 3) with(run<4, 3>);
  else if (block == 4 && vectors == kTile4) with(run<4, kTile4>);
  else if (block == 4) kRows == 16 && vectors == 4 ? with(run<4, 4>) : with(run<4, 6>);
  else if (vectors == 2) with(run<1, 2>);
  else if (vectors == 4) with(run<1, 4>);
  else if (vectors == 7) with(run<1, 7>);
  else with(run<1, 13>);
}

}  // namespace lilliput::LILLIPUT_ISA

LILLIPUT_KERNEL(sparse_conv)
LILLIPUT_KERNEL(sparse_conv_offsets)
