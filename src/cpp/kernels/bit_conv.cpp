// Convolutions of maps of bits: XNOR-Net's (Xor), bit planes (And), ternary by ternary (Ternary).
//
// x is [planes][batch][height][width][words] of 32 channels a word, weights [planes][outputs / 64][taps x words][64]. With
// levels a_i of the planes of x and b_j of those of w, the total of a window and an output is
//
//     base[o] + sum_ij a_i b_j count_ij + corner sum_{taps outside} sums[tap][o] + offset sum_{taps inside} sum_i a_i |x_i|
//
// Outside of the map all bits are 0; `sums` (what a tap's weights add up to) turns that into what the layer means. For
// Xor: base n, levels -2 and 1, and corner 0, 1 or 2 for a border of -1, 0 or +1.
#include "bits.h"

namespace lilliput {
namespace LILLIPUT_ISA {
namespace {

struct Shape {
  int64_t batch, height, width, words, outputs, rows, columns;  // rows x columns come out
  int64_t kh, kw, sh, sw, ph, pw, dh, dw;
};

// Maps with their borders of zeros: [planes][batch][height + 2 ph][width + 2 pw][words].
struct Padded {
  const uint32_t* data;
  int64_t height, width, plane;
};

Padded padded(const uint32_t* x, int64_t planes, const Shape& s) {
  const int64_t height = s.height + 2 * s.ph, width = s.width + 2 * s.pw;
  const int64_t plane = s.batch * height * width * s.words;
  if (s.ph == 0 && s.pw == 0) return {x, height, width, plane};
  uint32_t* out = scratch_of<uint32_t>(0, planes * plane);
  const int64_t line = s.width * s.words, side = s.pw * s.words;
  uint32_t* to = out;
  const auto zeros = [&](int64_t count) {
    std::memset(to, 0, sizeof(uint32_t) * static_cast<size_t>(count));
    to += count;
  };
  for (int64_t map = 0; map < planes * s.batch; ++map) {
    zeros(s.ph * width * s.words);
    for (int64_t i = 0; i < s.height; ++i, x += line) {
      zeros(side);
      std::memcpy(to, x, sizeof(uint32_t) * static_cast<size_t>(line));
      to += line;
      zeros(side);
    }
    zeros(s.ph * width * s.words);
  }
  return {out, height, width, plane};
}

// Sum over the planes of a_i times the ones of each place, [batch][height][width] with borders.
const int32_t* place_sums(const Padded& x, int64_t planes, const int32_t* levels, const Shape& s) {
  const int64_t places = s.batch * x.height * x.width;
  int32_t* out = scratch_of<int32_t>(1, places);
  for (int64_t place = 0; place < places; ++place) {
    int32_t sum = 0;
    for (int64_t i = 0; i < planes; ++i) {
      const uint32_t* word = x.data + i * x.plane + place * s.words;
      int32_t ones = 0;
      for (int64_t k = 0; k < s.words; ++k) ones += __builtin_popcount(word[k]);
      sum += levels[i] * ones;
    }
    out[place] = sum;
  }
  return out;
}

struct Layer {
  Shape s;
  Padded x;
  Runs runs;
  const uint32_t* weight;
  const int32_t *sums, *base, *levels;
  int64_t x_planes, w_planes, kind, corner, offset;
  const int32_t* places;  // null if offset is 0
  int64_t* origin;       // of every place that comes out: where its window begins in the padded map
  int32_t* kind_of;      // of every place: which taps lie outside, as a row of `bases`
  const int32_t* bases;  // [kinds][outputs]: base with what those taps add
};

// Taps before and behind the map.
struct Outside {
  int32_t before, behind;
};

// Sorts the places along an axis by their taps outside; returns how many kinds there are.
int32_t kinds_along(int64_t out, int64_t stride, int64_t pad, int64_t taps, int64_t gap, int64_t size, int32_t* kind,
                    Outside* kinds) {
  int32_t count = 0;
  for (int64_t i = 0; i < out; ++i) {
    Outside o{0, 0};
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t at = i * stride - pad + t * gap;
      o.before += at < 0;
      o.behind += at >= size;
    }
    int32_t found = 0;
    while (found < count && (kinds[found].before != o.before || kinds[found].behind != o.behind)) ++found;
    if (found == count) kinds[count++] = o;
    kind[i] = found;
  }
  return count;
}

// Fills origin, kind_of and bases.
void find_places(Layer& l) {
  const Shape& s = l.s;
  int32_t* kind = scratch_of<int32_t>(5, s.rows + s.columns);
  Outside* kinds = scratch_of<Outside>(6, s.rows + s.columns);
  const int32_t down = kinds_along(s.rows, s.sh, s.ph, s.kh, s.dh, s.height, kind, kinds);
  const int32_t across = kinds_along(s.columns, s.sw, s.pw, s.kw, s.dw, s.width, kind + s.rows, kinds + s.rows);
  int64_t place = 0;
  for (int64_t n = 0; n < s.batch; ++n) {
    for (int64_t i = 0; i < s.rows; ++i) {
      for (int64_t j = 0; j < s.columns; ++j, ++place) {
        l.origin[place] = (n * l.x.height + i * s.sh) * l.x.width + j * s.sw;
        l.kind_of[place] = kind[i] * across + kind[s.rows + j];
      }
    }
  }
  int32_t* table = scratch_of<int32_t>(7, down * across * s.outputs);
  l.bases = table;
  const int32_t corner = static_cast<int32_t>(l.corner);
  for (int64_t k = 0; k < down * across; ++k, table += s.outputs) {
    std::memcpy(table, l.base, sizeof(int32_t) * static_cast<size_t>(s.outputs));
    const Outside r = kinds[k / across], c = kinds[s.rows + k % across];
    for (int64_t i = 0; corner != 0 && i < s.kh; ++i) {
      const bool in = i >= r.before && i < s.kh - r.behind;
      for (int64_t j = 0; j < s.kw; ++j) {
        if (in && j >= c.before && j < s.kw - c.behind) continue;
        const int32_t* __restrict sums = l.sums + (i * s.kw + j) * s.outputs;
        for (int64_t o = 0; o < s.outputs; ++o) table[o] += corner * sums[o];
      }
    }
  }
}

int32_t window_sum(const Layer& l, int64_t origin) {
  int32_t sum = 0;
  for (int64_t i = 0; i < l.s.kh; ++i) {
    for (int64_t j = 0; j < l.s.kw; ++j) sum += l.places[origin + i * l.s.dh * l.x.width + j * l.s.dw];
  }
  return sum;
}

// Counts of up to kRows places, from `place` on, with a block of outputs. Returns what one count is worth; with several
// planes they are added up, each by its level.
int32_t counts_of(const Layer& l, int64_t place, int64_t count, int64_t from, int64_t width, int32_t* out) {
  const uint32_t* rows[kRows];
  const uint32_t* weight = l.weight + from * l.s.kh * l.s.kw * l.s.words;
  const bool single = l.x_planes * l.w_planes == 1;
  alignas(64) int32_t counts[kRows * kBlock];
  if (!single) {  // outputs behind `width` are added up as well
    std::memset(out, 0, sizeof counts);
    std::memset(counts, 0, sizeof counts);
  }
  for (int64_t a = 0; a < l.x_planes; ++a) {
    for (int64_t i = 0; i < count; ++i) rows[i] = l.x.data + a * l.x.plane + l.origin[place + i] * l.s.words;
    for (int64_t b = 0; b < l.w_planes; ++b) {
      const uint32_t* own = weight + b * l.runs.w_plane;
      int32_t* to = single ? out : counts;
      if (l.kind == 0) block<Xor>(rows, count, own, l.runs, width, to);
      else if (l.kind == 1) block<And>(rows, count, own, l.runs, width, to);
      else block<Ternary>(rows, count, own, l.runs, width, to);
      const int32_t level = l.levels[a] * l.levels[l.x_planes + b];
      if (single) return level;
      for (int64_t k = 0; k < count * kBlock; ++k) out[k] += level * counts[k];
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

}  // namespace

// Exactly one of total, real and packed is written. real = scale total [map] + bias, map having one number a place;
// packed is [batch][rows][columns][outputs / 64] words of 64.
void bit_conv(const int64_t* x, const int32_t* weight, const int32_t* sums, const int32_t* base, const int32_t* levels,
              int64_t x_planes, int64_t w_planes, int64_t kind, int64_t corner, int64_t offset, int64_t batch,
              int64_t height, int64_t width, int64_t words, int64_t outputs, int64_t rows, int64_t columns, int64_t kh,
              int64_t kw, int64_t sh, int64_t sw, int64_t ph, int64_t pw, int64_t dh, int64_t dw, const float* scale,
              const float* bias, const float* map, const int32_t* at, const int32_t* sign, int32_t* total, float* real,
              int64_t* packed) {
  const Shape s{batch, height, width, words, outputs, rows, columns, kh, kw, sh, sw, ph, pw, dh, dw};
  const int64_t planes = kind == 2 ? 2 * x_planes : x_planes;
  const Padded in = padded(reinterpret_cast<const uint32_t*>(x), planes, s);
  // With no dilation a row of taps is one stretch of words.
  const int64_t pieces = dw == 1 ? 1 : kw;
  int64_t* offsets = scratch_of<int64_t>(2, kh * pieces);
  for (int64_t i = 0; i < kh; ++i) {
    for (int64_t j = 0; j < pieces; ++j) offsets[i * pieces + j] = (i * dh * in.width + j * dw) * words;
  }
  const int64_t blocks = (outputs + kBlock - 1) / kBlock, places = batch * rows * columns;
  const Runs runs{offsets, kh * pieces, (dw == 1 ? kw : 1) * words, in.plane, blocks * kBlock * kh * kw * words};
  const int32_t* place = offset == 0 ? nullptr : place_sums(in, x_planes, levels, s);
  Layer layer{s, in, runs, reinterpret_cast<const uint32_t*>(weight), sums, base, levels, x_planes, w_planes,
                    kind, corner, offset, place, scratch_of<int64_t>(3, places), scratch_of<int32_t>(4, places),
              nullptr};
  find_places(layer);
  const auto work = [&](int64_t first, int64_t from) {
    const int64_t count = places - first < kRows ? places - first : kRows;
    const int64_t wide = outputs - from < kBlock ? outputs - from : kBlock;
    alignas(64) int32_t found[kRows * kBlock], whole[kBlock];
    const int32_t level = counts_of(layer, first, count, from, wide, found);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t to = (first + i) * outputs + from;
      const int32_t *own = found + i * kBlock, *start = layer.bases + layer.kind_of[first + i] * outputs + from;
      const int32_t more = offset == 0 ? 0 : static_cast<int32_t>(offset) * window_sum(layer, layer.origin[first + i]);
      if (real != nullptr) {
        const float k = map == nullptr ? 1.0f : map[first + i];
        const float* own_bias = bias == nullptr ? nullptr : bias + from;
        if (wide == kBlock) real_outputs(own, start, level, more, scale + from, k, own_bias, real + to, kBlock);
        else real_outputs(own, start, level, more, scale + from, k, own_bias, real + to, wide);
        continue;
      }
      int32_t* target = total != nullptr ? total + to : whole;
      if (wide == kBlock) whole_outputs(own, start, level, more, target, kBlock);
      else whole_outputs(own, start, level, more, target, wide);
      if (packed != nullptr) {
        packed[(first + i) * blocks + from / kBlock] = static_cast<int64_t>(signs_of(whole, at + from, sign + from, wide));
      }
    }
  };
  const int64_t tiles = (places + kRows - 1) / kRows, depth = kh * kw * words * x_planes * w_planes;
  // A block of weights stays in the cache while all places go by.
  parallel_for(blocks * tiles, 1 + (1 << 14) / (depth + 1), [&](int64_t begin, int64_t end) {
    int64_t tile = begin % tiles, from = begin / tiles * kBlock;
    for (int64_t i = begin; i < end; ++i) {
      work(tile * kRows, from);
      if (++tile == tiles) {
        tile = 0;
        from += kBlock;
      }
    }
  });
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput

LILLIPUT_KERNEL(bit_conv)
