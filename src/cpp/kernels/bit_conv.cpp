// Convolutions of maps of bits: XNOR-Net's (Xor), bit planes (And), ternary by ternary (Ternary).
//
// x is [planes][batch][height][width][words] of 32 channels a word, weights [planes][outputs / 64][taps x words][64]. With
// levels a_i of the planes of x and b_j of those of w, the total of a window and an output is
//
//     base[o] + sum_{taps inside} (sum_ij a_i b_j count_ij + offset sum_i a_i |x_i|) + sum_{taps outside} outside[tap][o]
//
// A tap is outside where what it would read lies beyond the map, and isn't read. Places that come out are sorted by which
// taps are outside (a 3 x 3 window with a border of 1 has nine kinds: the inside, four sides, four corners); a tile is of
// places of one kind.
#include "pack_maps.h"

namespace lilliput {
namespace LILLIPUT_ISA {
namespace {

// Whole numbers in the order of `sizes`. Inputs are packed, or floats with their channels first or last.
struct Shape {
  int64_t x_planes, w_planes, kind, offset, batch, height, width, words, outputs, rows, columns;
  int64_t kh, kw, sh, sw, ph, pw, dh, dw, channels, input, scaled;

  int64_t places() const { return batch * rows * columns; }
};
enum Input { kPacked, kFirst, kLast };
enum Slot { kBits, kAxes, kKinds, kStretches, kBases, kSums, kMeans };

// Taps before and behind the map.
struct Outside {
  int32_t before, behind;
};

// Places along an axis, sorted by their taps outside: those of kind k are order[start[k]] .. order[start[k + 1]].
struct Axis {
  int32_t kinds;
  Outside* kind;
  int32_t *order, *start;

  static int64_t numbers(int64_t out) { return 5 * out + 1; }

  // `memory` has room for numbers(out).
  Axis(int64_t out, int64_t stride, int64_t pad, int64_t taps, int64_t gap, int64_t size, int32_t* memory)
      : kinds(0), kind(reinterpret_cast<Outside*>(memory)), order(memory + 2 * out), start(order + out) {
    int32_t* own = start + out + 1;
    for (int64_t i = 0; i < out; ++i) {
      const int64_t first = i * stride - pad;
      Outside o{0, 0};
      if (first < 0 || first + (taps - 1) * gap >= size) {
        for (int64_t t = 0; t < taps; ++t) {
          o.before += first + t * gap < 0;
          o.behind += first + t * gap >= size;
        }
      }
      int32_t found = 0;
      while (found < kinds && (kind[found].before != o.before || kind[found].behind != o.behind)) ++found;
      if (found == kinds) kind[kinds++] = o;
      own[i] = found;
    }
    int32_t place = 0;
    for (int32_t k = 0; k < kinds; ++k) {
      start[k] = place;
      for (int64_t i = 0; i < out; ++i) {
        if (own[i] == k) order[place++] = static_cast<int32_t>(i);
      }
    }
    start[kinds] = place;
  }

  int64_t count(int64_t k) const { return start[k + 1] - start[k]; }
};

// Places of one kind, batch x rows x columns of them, and the words that their windows hold.
struct Kind {
  Outside down, across;
  const int32_t *rows, *columns;
  int64_t high, wide, places, tiles, each, more;  // tiles of `each` places, the first `more` of one more
  const Stretch* stretch;
  int64_t stretches;
  const int32_t* base;
};

struct Layer {
  Shape s;
  const uint32_t *x, *weight;
  int64_t x_plane, w_plane;
  const int32_t *outside, *base, *levels;
  const int32_t* sums;  // of each place of x, sum_i a_i |x_i|; null if offset is 0
  const Kind* kind;
  int64_t kinds, tiles;
};

// What the taps inside read: with no dilation a row of them is one stretch of words.
int64_t stretches_of(const Shape& s, const Kind& k, Stretch* to) {
  const Stretch* begin = to;
  const int64_t left = k.across.before, right = s.kw - k.across.behind;
  for (int64_t i = k.down.before; i < s.kh - k.down.behind; ++i) {
    const int64_t line = i * s.dh * s.width;
    for (int64_t j = left; j < right; j = s.dw == 1 ? right : j + 1) {
      const int64_t taps = s.dw == 1 ? right - left : 1;
      *to++ = {(line + j * s.dw) * s.words, (i * s.kw + j) * s.words, taps * s.words};
    }
  }
  return to - begin;
}

// What taps outside add to an output.
void add_outside(const Layer& l, const Kind& k, int32_t* __restrict to) {
  const Shape& s = l.s;
  std::memcpy(to, l.base, sizeof(int32_t) * static_cast<size_t>(s.outputs));
  for (int64_t i = 0; i < s.kh; ++i) {
    const bool in = i >= k.down.before && i < s.kh - k.down.behind;
    for (int64_t j = 0; j < s.kw; ++j) {
      if (in && j >= k.across.before && j < s.kw - k.across.behind) continue;
      const int32_t* __restrict own = l.outside + (i * s.kw + j) * s.outputs;
      for (int64_t o = 0; o < s.outputs; ++o) to[o] += own[o];
    }
  }
}

// Sorts the places; tiles of a kind are as many as it takes, of even sizes.
void find_kinds(Layer& l, int64_t most) {
  const Shape& s = l.s;
  int32_t* memory = scratch_of<int32_t>(kAxes, Axis::numbers(s.rows) + Axis::numbers(s.columns));
  const Axis down(s.rows, s.sh, s.ph, s.kh, s.dh, s.height, memory);
  const Axis across(s.columns, s.sw, s.pw, s.kw, s.dw, s.width, memory + Axis::numbers(s.rows));
  l.kinds = int64_t{down.kinds} * across.kinds;
  l.tiles = 0;
  Kind* kind = scratch_of<Kind>(kKinds, l.kinds);
  Stretch* stretch = scratch_of<Stretch>(kStretches, l.kinds * s.kh * (s.dw == 1 ? 1 : s.kw));
  int32_t* base = scratch_of<int32_t>(kBases, l.kinds * s.outputs);
  l.kind = kind;
  for (int32_t a = 0; a < down.kinds; ++a) {
    for (int32_t b = 0; b < across.kinds; ++b, ++kind, base += s.outputs) {
      *kind = {down.kind[a], across.kind[b], down.order + down.start[a], across.order + across.start[b], down.count(a),
               across.count(b), 0, 0, 0, 0, stretch, 0, base};
      kind->places = s.batch * kind->high * kind->wide;
      kind->tiles = (kind->places + most - 1) / most;
      kind->each = kind->places / kind->tiles, kind->more = kind->places % kind->tiles;
      kind->stretches = stretches_of(s, *kind, stretch);
      add_outside(l, *kind, base);
      stretch += kind->stretches;
      l.tiles += kind->tiles;
    }
  }
}

// Of every place of x the sum over the planes of a_i times its ones.
const int32_t* place_sums(const Layer& l) {
  const Shape& s = l.s;
  const int64_t places = s.batch * s.height * s.width;
  int32_t* out = scratch_of<int32_t>(kSums, places);
  for (int64_t place = 0; place < places; ++place) {
    int32_t sum = 0;
    for (int64_t i = 0; i < s.x_planes; ++i) {
      const uint32_t* word = l.x + i * l.x_plane + place * s.words;
      int32_t ones = 0;
      for (int64_t k = 0; k < s.words; ++k) ones += __builtin_popcount(word[k]);
      sum += l.levels[i] * ones;
    }
    out[place] = sum;
  }
  return out;
}

int32_t window_sum(const Layer& l, const Kind& kind, int64_t corner) {
  int32_t sum = 0;
  for (int64_t i = kind.down.before; i < l.s.kh - kind.down.behind; ++i) {
    for (int64_t j = kind.across.before; j < l.s.kw - kind.across.behind; ++j) {
      sum += l.sums[corner + i * l.s.dh * l.s.width + j * l.s.dw];
    }
  }
  return sum;
}

// XNOR-Net's K: of every place that comes out the mean of `mean` over its window, zeros outside.
void window_means(const float* mean, const Shape& s, float* out) {
  const float part = 1.0f / static_cast<float>(s.kh * s.kw);
  for (int64_t row = 0; row < s.batch * s.rows; ++row, out += s.columns) {
    for (int64_t j = 0; j < s.columns; ++j) out[j] = 0.0f;
    for (int64_t i = 0; i < s.kh; ++i) {
      const int64_t from = row % s.rows * s.sh - s.ph + i * s.dh;
      if (from < 0 || from >= s.height) continue;
      const float* line = mean + (row / s.rows * s.height + from) * s.width;
      for (int64_t t = 0; t < s.kw; ++t) {
        const int64_t shift = t * s.dw - s.pw;
        const int64_t first = shift < 0 ? (s.sw - 1 - shift) / s.sw : 0;
        const int64_t reach = s.width > shift ? (s.width - shift + s.sw - 1) / s.sw : 0;
        const int64_t last = reach < s.columns ? reach : s.columns;
        if (s.sw == 1) {
          for (int64_t j = first; j < last; ++j) out[j] += line[j + shift];
        } else {
          for (int64_t j = first; j < last; ++j) out[j] += line[j * s.sw + shift];
        }
      }
    }
    for (int64_t j = 0; j < s.columns; ++j) out[j] *= part;
  }
}

// Where a kind's next place is, by the lists of its rows and columns.
struct Cursor {
  int64_t n, i, j;

  static Cursor at(const Kind& kind, int64_t tile) {
    const int64_t place = tile * kind.each + (tile < kind.more ? tile : kind.more);
    return {place / kind.wide / kind.high, place / kind.wide % kind.high, place % kind.wide};
  }
};

// Where the places of a tile stand in the map that comes out, and where their windows begin in x, maybe outside of it.
struct Tile {
  int64_t count, out[kRows], corner[kRows];

  Tile(const Shape& s, const Kind& kind, int64_t number, Cursor& next) {
    count = kind.each + (number < kind.more ? 1 : 0);
    for (int64_t p = 0; p < count; ++p) {
      const int64_t row = kind.rows[next.i], column = kind.columns[next.j];
      out[p] = (next.n * s.rows + row) * s.columns + column;
      corner[p] = (next.n * s.height + row * s.sh - s.ph) * s.width + column * s.sw - s.pw;
      if (++next.j < kind.wide) continue;
      next.j = 0;
      if (++next.i < kind.high) continue;
      next.i = 0;
      ++next.n;
    }
  }
};

// Counts of a tile with a block of outputs. Returns what one count is worth; with several planes they are added up, each
// by its level.
int32_t counts_of(const Layer& l, const Kind& kind, const Tile& tile, int64_t from, int64_t width, int32_t* out) {
  const Shape& s = l.s;
  const uint32_t* weight = l.weight + from * s.kh * s.kw * s.words;
  const Runs runs{kind.stretch, kind.stretches, l.x_plane, l.w_plane};
  const bool single = s.x_planes * s.w_planes == 1;
  alignas(64) int32_t counts[kRows * kBlock];
  if (!single) {  // outputs behind `width` are added up as well
    std::memset(out, 0, sizeof counts);
    std::memset(counts, 0, sizeof counts);
  }
  int64_t at[kRows];
  for (int64_t i = 0; i < tile.count; ++i) at[i] = tile.corner[i] * s.words;
  for (int64_t a = 0; a < s.x_planes; ++a) {
    for (int64_t b = 0; b < s.w_planes; ++b) {
      const uint32_t* own = weight + b * l.w_plane;
      const uint32_t* x = l.x + a * l.x_plane;
      int32_t* to = single ? out : counts;
      if (s.kind == 0) block<Xor>(x, at, tile.count, own, runs, width, to);
      else if (s.kind == 1) block<And>(x, at, tile.count, own, runs, width, to);
      else block<Ternary>(x, at, tile.count, own, runs, width, to);
      const int32_t level = l.levels[a] * l.levels[s.x_planes + b];
      if (single) return level;
      for (int64_t k = 0; k < tile.count * kBlock; ++k) out[k] += level * counts[k];
    }
  }
  return 1;
}

// to[o] = scale[o] k (base[o] + level count[o] + more) + bias[o]. `width` is a constant where it is kBlock.
LILLIPUT_INLINE void real_outputs(const int32_t* __restrict count, const int32_t* __restrict base, int32_t level,
                                  int32_t more, const float* __restrict scale, float k, const float* __restrict bias,
                                  float* __restrict to, int64_t width) {
  if (bias == nullptr) {
    for (int64_t o = 0; o < width; ++o) to[o] = static_cast<float>(base[o] + level * count[o] + more) * scale[o] * k;
  } else {
    for (int64_t o = 0; o < width; ++o) {
      to[o] = static_cast<float>(base[o] + level * count[o] + more) * scale[o] * k + bias[o];
    }
  }
}

LILLIPUT_INLINE void whole_outputs(const int32_t* __restrict count, const int32_t* __restrict base, int32_t level,
                                   int32_t more, int32_t* __restrict to, int64_t width) {
  for (int64_t o = 0; o < width; ++o) to[o] = base[o] + level * count[o] + more;
}

// Bit o is whether sign[o] total[o] >= at[o]; 64 outputs, what lies behind `width` is 0.
uint64_t signs_of(const int32_t* total, const int32_t* at, const int32_t* sign, int64_t width) {
  uint64_t word = 0;
  int64_t o = 0;
#if defined(__AVX512F__)
  for (; o + 16 <= width; o += 16) {
    const __m512i value = _mm512_mullo_epi32(_mm512_loadu_si512(total + o), _mm512_loadu_si512(sign + o));
    word |= static_cast<uint64_t>(_mm512_cmpge_epi32_mask(value, _mm512_loadu_si512(at + o))) << o;
  }
#endif
  for (; o < width; ++o) word |= static_cast<uint64_t>(sign[o] * total[o] >= at[o]) << o;
  return word;
}

// Where results go. Exactly one of total, real and packed is written: real = scale total [map] + bias, map having one
// number a place; packed is [batch][rows][columns][outputs / 64] words of 64.
struct Results {
  const float *scale, *bias, *map;
  const int32_t *at, *sign;
  int32_t* total;
  float* real;
  int64_t* packed;
};

// One tile with a block of outputs.
void finish_tile(const Layer& l, const Kind& kind, const Tile& tile, int64_t from, const Results& to) {
  const int64_t outputs = l.s.outputs, width = outputs - from < kBlock ? outputs - from : kBlock;
  const int32_t* base = kind.base + from;
  alignas(64) int32_t found[kRows * kBlock], whole[kBlock];
  const int32_t level = counts_of(l, kind, tile, from, width, found);
  for (int64_t p = 0; p < tile.count; ++p) {
    const int64_t place = tile.out[p], at = place * outputs + from;
    const int32_t* own = found + p * kBlock;
    const int32_t more = l.sums == nullptr ? 0 : static_cast<int32_t>(l.s.offset) * window_sum(l, kind, tile.corner[p]);
    if (to.real != nullptr) {
      const float k = to.map == nullptr ? 1.0f : to.map[place];
      const float* bias = to.bias == nullptr ? nullptr : to.bias + from;
      if (width == kBlock) real_outputs(own, base, level, more, to.scale + from, k, bias, to.real + at, kBlock);
      else real_outputs(own, base, level, more, to.scale + from, k, bias, to.real + at, width);
      continue;
    }
    int32_t* target = to.total != nullptr ? to.total + at : whole;
    if (width == kBlock) whole_outputs(own, base, level, more, target, kBlock);
    else whole_outputs(own, base, level, more, target, width);
    if (to.packed != nullptr) {
      const uint64_t word = signs_of(whole, to.at + from, to.sign + from, width);
      to.packed[place * ((outputs + kBlock - 1) / kBlock) + from / kBlock] = static_cast<int64_t>(word);
    }
  }
}

}  // namespace

// `sizes`: see Shape. x holds bits, or is null and `floats` holds numbers whose signs are taken; `scaled` then makes K of
// them. Results: see there.
void bit_conv(const int64_t* sizes, const int64_t* x, const float* floats, const int32_t* weight, const int32_t* outside,
              const int32_t* base, const int32_t* levels, const float* scale, const float* bias, const float* map,
              const int32_t* at, const int32_t* sign, int32_t* total, float* real, int64_t* packed) {
  Shape s;
  std::memcpy(&s, sizes, sizeof s);
  const int64_t places = s.height * s.width, blocks = (s.outputs + kBlock - 1) / kBlock;
  if (s.input != kPacked) {
    int32_t* bits = scratch_of<int32_t>(kBits, s.batch * places * s.words);
    float* mean = s.scaled != 0 ? scratch_of<float>(kMeans, s.batch * places + s.places()) : nullptr;
    if (s.input == kFirst) pack_signs_nchw(floats, bits, mean, s.batch, s.channels, places, s.words);
    else pack_signs_nhwc(floats, bits, mean, s.batch * places, s.channels, s.words);
    x = reinterpret_cast<const int64_t*>(bits);
    if (mean != nullptr) window_means(mean, s, mean + s.batch * places), map = mean + s.batch * places;
  }
  Layer layer{s, reinterpret_cast<const uint32_t*>(x), reinterpret_cast<const uint32_t*>(weight),
              s.batch * places * s.words, blocks * kBlock * s.kh * s.kw * s.words, outside, base, levels, nullptr,
              nullptr, 0, 0};
  find_kinds(layer, s.kind == 2 ? rows_of<Ternary>() : kRows);
  if (s.offset != 0) layer.sums = place_sums(layer);
  const Results results{scale, bias, map, at, sign, total, real, packed};
  const int64_t depth = s.kh * s.kw * s.words * s.x_planes * s.w_planes;
  // A block of weights stays in the cache while all places go by.
  parallel_for(blocks * layer.tiles, 1 + (1 << 14) / (depth + 1), [&](int64_t begin, int64_t end) {
    int64_t number = begin % layer.tiles, from = begin / layer.tiles * kBlock;
    const Kind* kind = layer.kind;
    while (number >= kind->tiles) number -= kind++->tiles;
    Cursor next = Cursor::at(*kind, number);
    for (int64_t i = begin; i < end; ++i) {
      const Tile tile(s, *kind, number, next);
      finish_tile(layer, *kind, tile, from, results);
      if (++number < kind->tiles) continue;
      number = 0;
      next = {0, 0, 0};
      if (++kind < layer.kind + layer.kinds) continue;
      kind = layer.kind;
      from += kBlock;
    }
  });
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput

LILLIPUT_KERNEL(bit_conv)
