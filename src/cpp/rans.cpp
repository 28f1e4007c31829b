// Interleaved rANS with 32-bit states and 16-bit words: the same bytes as lilliput/coding/parts/stream.py.
//
// Element i of a rows x columns array uses lane i mod lanes and the histogram of level rows[r] + columns[c]. The
// decoder takes a word where a state falls below 2^16, in the order of the elements; the encoder walks backwards.
// Both check every index before they use it, so a hostile stream can at worst be refused.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "registry.h"

namespace nb = nanobind;

namespace {

template <typename T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

constexpr uint32_t kLowest = 1u << 16;
constexpr size_t kBlock = 4096;  // elements whose levels are looked up at once

const char* const kCutOff = "a coded stream ends before its values do";

// The model, checked: every level that can occur has a histogram, and every histogram sums to 2^precision.
struct Model {
  const uint8_t* rows;
  const uint8_t* columns;
  size_t row_count, column_count, levels, symbols;
  const uint16_t* frequencies;
  unsigned precision;
  size_t lanes;

  Model(const Vector<uint8_t>& rows_, const Vector<uint8_t>& columns_, const Matrix<uint16_t>& frequencies_,
        unsigned precision_, size_t lanes_)
      : rows(rows_.data()), columns(columns_.data()), row_count(rows_.size()), column_count(columns_.size()),
        levels(frequencies_.shape(0)), symbols(frequencies_.shape(1)), frequencies(frequencies_.data()),
        precision(precision_), lanes(lanes_) {
    if (precision < 12 || precision > 15) throw std::invalid_argument("precision must be 12..15");
    if (lanes == 0 || (lanes & (lanes - 1)) || lanes > 32768) throw std::invalid_argument("lanes: a power of two");
    if (symbols == 0 || symbols > 32768 || levels == 0) throw std::invalid_argument("histograms have no valid shape");
    const size_t high = (row_count ? *std::max_element(rows, rows + row_count) : 0) +
                        (column_count ? *std::max_element(columns, columns + column_count) : 0);
    if (high >= levels) throw std::invalid_argument("a level has no histogram");
    for (size_t level = 0; level < levels; ++level) {
      uint64_t sum = 0;
      for (size_t s = 0; s < symbols; ++s) sum += frequencies[level * symbols + s];
      if (sum != 1u << precision) throw std::invalid_argument("a histogram doesn't sum to 2^precision");
    }
  }

  size_t size() const { return row_count * column_count; }
};

// Fills out[0 .. count) with scale * level of the elements from `start` on.
void fill_levels(const Model& model, size_t start, size_t count, uint32_t scale, uint32_t* out) {
  size_t row = start / model.column_count, column = start % model.column_count;
  while (count) {
    const size_t run = std::min(count, model.column_count - column);
    const uint32_t base = model.rows[row];
    for (size_t i = 0; i < run; ++i) out[i] = (base + model.columns[column + i]) * scale;
    out += run;
    count -= run;
    column = 0;
    ++row;
  }
}

template <typename Symbol>
nb::bytes encode(const Vector<Symbol>& symbols, const Vector<uint8_t>& rows, const Vector<uint8_t>& columns,
                 const Matrix<uint16_t>& frequencies, unsigned precision, size_t lanes) {
  const Model model(rows, columns, frequencies, precision, lanes);
  const size_t n = symbols.size();
  const Symbol* source = symbols.data();
  if (n != model.size()) throw std::invalid_argument("symbols and levels differ in number");
  if (n && *std::max_element(source, source + n) >= model.symbols) throw std::invalid_argument("symbol out of range");
  struct Entry {
    uint16_t frequency, first;
  };
  std::vector<Entry> table(model.levels * model.symbols);
  for (size_t level = 0, at = 0; level < model.levels; ++level) {
    uint32_t first = 0;
    for (size_t s = 0; s < model.symbols; ++s, ++at) {
      table[at] = {model.frequencies[at], static_cast<uint16_t>(first)};
      first += model.frequencies[at];
    }
  }
  std::vector<uint16_t> words;  // in the order of writing: the reverse of the order of reading
  words.reserve(n / 4 + 16);
  std::vector<uint32_t> states(lanes, kLowest);
  uint32_t offsets[kBlock];
  uint16_t written[kBlock];
  const unsigned shift = 32 - precision;
  for (size_t stop = n; stop > 0;) {
    const size_t start = (stop - 1) / kBlock * kBlock;
    fill_levels(model, start, stop - start, static_cast<uint32_t>(model.symbols), offsets);
    size_t count = 0;
    for (size_t i = stop; i-- > start;) {
      const Entry entry = table[offsets[i - start] + source[i]];
      if (entry.frequency == 0) throw std::invalid_argument("a symbol that occurs has no frequency");
      uint32_t x = states[i & (lanes - 1)];
      written[count] = static_cast<uint16_t>(x);
      const bool over = x >= static_cast<uint64_t>(entry.frequency) << shift;
      count += over;
      x = over ? x >> 16 : x;
      const uint32_t quotient = x / entry.frequency;
      states[i & (lanes - 1)] = (quotient << precision) + (x - quotient * entry.frequency) + entry.first;
    }
    words.insert(words.end(), written, written + count);
    stop = start;
  }
  std::vector<uint8_t> out(4 * lanes + 2 * words.size());
  uint8_t* to = out.data();
  for (uint32_t x : states)
    for (int b = 0; b < 4; ++b) *to++ = static_cast<uint8_t>(x >> (8 * b));
  for (size_t i = words.size(); i-- > 0;) {
    *to++ = static_cast<uint8_t>(words[i]);
    *to++ = static_cast<uint8_t>(words[i] >> 8);
  }
  return nb::bytes(reinterpret_cast<const char*>(out.data()), out.size());
}

inline uint32_t load_word(const uint8_t* at) {  // little-endian, whatever the machine is
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  uint16_t word;
  std::memcpy(&word, at, sizeof word);
  return word;
#else
  return at[0] | static_cast<uint32_t>(at[1]) << 8;
#endif
}

// Slot -> symbol, frequency and slot - first, in one 32-bit word: for 12 bits and up to 256 symbols. Values of one byte
// take the place of the symbol.
template <typename Value>
struct PackedTable {
  std::vector<uint32_t> slots;
  Value values[256] = {};  // whatever the table holds, an entry's byte is an index into it
  PackedTable(const Model& m, const Value* source) : slots(m.levels << m.precision) {
    std::copy(source, source + m.symbols, values);
    size_t slot = 0;
    for (size_t level = 0, at = 0; level < m.levels; ++level)
      for (uint32_t s = 0; s < m.symbols; ++s, ++at)
        for (uint32_t j = 0, f = m.frequencies[at]; j < f; ++j)
          slots[slot++] = f << 20 | j << 8 | (sizeof(Value) == 1 ? static_cast<uint32_t>(values[s]) : s);
  }
  static bool fits(const Model& m) {
    return m.precision == 12 && m.symbols <= 256 &&
           *std::max_element(m.frequencies, m.frequencies + m.levels * m.symbols) < 4096;
  }
  inline uint32_t step(uint32_t x, uint32_t offset, Value* out) const {
    const uint32_t entry = slots[offset + (x & 4095)];
    *out = sizeof(Value) == 1 ? static_cast<Value>(entry) : values[entry & 255];
    return (entry >> 20) * (x >> 12) + (entry >> 8 & 4095);
  }
};

// Slot -> symbol, then symbol -> frequency and first slot: small enough for the cache at any precision.
template <typename Value>
struct SplitTable {
  struct Entry {
    uint16_t frequency, first;
  };
  std::vector<uint16_t> slots;
  std::vector<Entry> entries;
  const Value* values;
  size_t symbols;
  unsigned precision;
  SplitTable(const Model& m, const Value* source)
      : slots(m.levels << m.precision), entries(m.levels * m.symbols), values(source), symbols(m.symbols),
        precision(m.precision) {
    size_t slot = 0;
    for (size_t level = 0, at = 0; level < m.levels; ++level) {
      uint32_t first = 0;
      for (uint32_t s = 0; s < m.symbols; ++s, ++at) {
        const uint32_t f = m.frequencies[at];
        entries[at] = {static_cast<uint16_t>(f), static_cast<uint16_t>(first)};
        std::fill_n(slots.begin() + static_cast<ptrdiff_t>(slot), f, static_cast<uint16_t>(s));
        slot += f;
        first += f;
      }
    }
  }
  inline uint32_t step(uint32_t x, uint32_t offset, Value* out) const {
    const uint32_t slot = x & ((1u << precision) - 1);
    const uint16_t s = slots[offset + slot];
    *out = values[s];
    const Entry entry = entries[(offset >> precision) * symbols + s];
    return entry.frequency * (x >> precision) + slot - entry.first;
  }
};

// Decodes everything; returns what is wrong, or nullptr. Where words are rare, a branch on them is predicted well;
// elsewhere arithmetic is faster.
template <bool kRare, typename Table, typename Value>
const char* run(const Model& model, const Table& table, const uint8_t* data, size_t length, Value* out) {
  const size_t n = model.size(), lanes = model.lanes;
  std::vector<uint32_t> states(lanes);
  for (size_t lane = 0; lane < lanes; ++lane) {
    states[lane] = load_word(data + 4 * lane) | load_word(data + 4 * lane + 2) << 16;
    if (states[lane] < kLowest) return "a lane of a coded stream starts out of range";
  }
  const uint8_t* word = data + 4 * lanes;
  const uint8_t* const end = data + length;
  uint32_t offsets[kBlock] = {0};
  for (size_t start = 0; start < n; start += kBlock) {
    const size_t count = std::min(kBlock, n - start);
    if (model.levels > 1) fill_levels(model, start, count, 1u << model.precision, offsets);
    size_t i = 0;
    if (lanes >= 8) {
      for (; i + 8 <= count && end - word >= 16; i += 8) {
        uint32_t* lane = &states[(start + i) & (lanes - 1)];
        Value decoded[8];  // a copy, because stores to `out` might alias the states for all the compiler knows
        for (size_t j = 0; j < 8; ++j) {
          const uint32_t y = table.step(lane[j], offsets[i + j], &decoded[j]);
          if (kRare) {
            lane[j] = y;
            if (y < kLowest) {
              lane[j] = y << 16 | load_word(word);
              word += 2;
            }
          } else {
            const uint32_t low = y < kLowest;
            lane[j] = y ^ ((y ^ (y << 16 | load_word(word))) & (0u - low));
            word += 2 * low;
          }
        }
        std::memcpy(&out[start + i], decoded, sizeof decoded);
      }
    }
    for (; i < count; ++i) {
      uint32_t& lane = states[(start + i) & (lanes - 1)];
      lane = table.step(lane, offsets[i], &out[start + i]);
      if (lane < kLowest) {
        if (end - word < 2) return kCutOff;
        lane = lane << 16 | load_word(word);
        word += 2;
      }
    }
  }
  if (word != end) return "a coded stream holds more words than its values need";
  for (uint32_t x : states)
    if (x != kLowest) return "a lane of a coded stream doesn't end where it began";
  return nullptr;
}

template <typename Value>
const char* decode(const Vector<uint8_t>& data, const Vector<uint8_t>& rows, const Vector<uint8_t>& columns,
                   const Matrix<uint16_t>& frequencies, unsigned precision, size_t lanes, const Vector<Value>& values,
                   nb::ndarray<Value, nb::ndim<1>, nb::c_contig, nb::device::cpu> out) {
  const Model model(rows, columns, frequencies, precision, lanes);
  if (out.size() != model.size()) throw std::invalid_argument("output and levels differ in number");
  if (values.size() != model.symbols) throw std::invalid_argument("values and symbols differ in number");
  if (data.size() < 4 * lanes || data.size() % 2) return "a coded stream is cut off in the states of its lanes";
  const bool rare = data.size() / 2 < out.size() / 8;
  if (PackedTable<Value>::fits(model)) {
    const auto decoder = rare ? run<true, PackedTable<Value>, Value> : run<false, PackedTable<Value>, Value>;
    return decoder(model, PackedTable<Value>(model, values.data()), data.data(), data.size(), out.data());
  }
  const auto decoder = rare ? run<true, SplitTable<Value>, Value> : run<false, SplitTable<Value>, Value>;
  return decoder(model, SplitTable<Value>(model, values.data()), data.data(), data.size(), out.data());
}

// counts[level, symbol]: the encoder's statistics.
template <typename Symbol>
void count(const Vector<Symbol>& symbols, const Vector<uint8_t>& rows, const Vector<uint8_t>& columns,
           nb::ndarray<int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> counts) {
  const size_t n = symbols.size(), levels = counts.shape(0), size = counts.shape(1);
  if (rows.size() * columns.size() != n) throw std::invalid_argument("symbols and levels differ in number");
  const Symbol* source = symbols.data();
  if (n == 0) return;
  if (*std::max_element(source, source + n) >= size) throw std::invalid_argument("symbol out of range");
  const size_t high = *std::max_element(rows.data(), rows.data() + rows.size()) +
                      size_t{*std::max_element(columns.data(), columns.data() + columns.size())};
  if (high >= levels) throw std::invalid_argument("a level is out of range");
  for (size_t r = 0, i = 0; r < rows.size(); ++r) {
    int64_t* row = counts.data() + rows.data()[r] * size;
    for (size_t c = 0; c < columns.size(); ++c, ++i) ++row[columns.data()[c] * size + source[i]];
  }
}

// Levels priced at a time. Prices are padded, so that this many can be read from any level on.
constexpr size_t kWidth = 16;

// One row of the array: `base` is the level and `target` the index along the priced axis, of each column.
template <typename Symbol, typename Sum>
void accumulate(const Symbol* source, const std::vector<uint32_t>& base, const std::vector<uint32_t>& target,
                const int32_t* prices, size_t stride, Sum* sums) {
  for (size_t c = 0; c < base.size(); ++c) {
    const int32_t* from = prices + source[c] * stride + base[c];
    Sum* to = sums + target[c];
    for (size_t j = 0; j < kWidth; ++j) to[j] += from[j];
  }
}

// The same where the priced axis is the rows: all columns go to one index, kept in registers.
template <typename Symbol, typename Sum>
void accumulate(const Symbol* source, const std::vector<uint32_t>& base, const int32_t* prices, size_t stride,
                Sum* sums) {
  Sum total[kWidth] = {};
  for (size_t c = 0; c < base.size(); ++c) {
    const int32_t* from = prices + source[c] * stride + base[c];
    for (size_t j = 0; j < kWidth; ++j) total[j] += from[j];
  }
  std::copy(total, total + kWidth, sums);
}

template <typename Sum, typename Symbol>
std::vector<Sum> priced(const Symbol* source, const uint8_t* const maps[3], const size_t sizes[3], unsigned axis,
                        const std::vector<int32_t>& prices, size_t stride) {
  std::vector<Sum> sums(sizes[axis] * kWidth);
  std::vector<uint32_t> columns(sizes[1] * sizes[2]), base(columns.size()), target(columns.size());
  for (size_t k = 0, c = 0; k < sizes[1]; ++k)
    for (size_t q = 0; q < sizes[2]; ++q, ++c) {
      columns[c] = (axis == 1 ? 0 : maps[1][k]) + (axis == 2 ? 0 : maps[2][q]);
      target[c] = static_cast<uint32_t>(axis == 1 ? k : q) * kWidth;
    }
  for (size_t r = 0; r < sizes[0]; ++r, source += columns.size()) {
    if (axis == 0) {
      accumulate(source, columns, prices.data(), stride, &sums[r * kWidth]);
    } else {
      for (size_t c = 0; c < columns.size(); ++c) base[c] = columns[c] + maps[0][r];
      accumulate(source, base, target, prices.data(), stride, sums.data());
    }
  }
  return sums;
}

// costs[index along axis, j] = sum of prices[symbol, j + level of the two other axes]: what each row, inner index or
// position would cost at each level of its own. The map of the priced axis is ignored.
template <typename Symbol>
void price(const Vector<Symbol>& symbols, const Vector<uint8_t>& rows, const Vector<uint8_t>& inner,
           const Vector<uint8_t>& positions, const Matrix<int32_t>& prices, unsigned axis,
           nb::ndarray<int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> costs) {
  const size_t n = symbols.size(), levels = prices.shape(1), width = costs.shape(1);
  const size_t sizes[3] = {rows.size(), inner.size(), positions.size()};
  const uint8_t* maps[3] = {rows.data(), inner.data(), positions.data()};
  if (axis > 2 || sizes[1] * sizes[2] > UINT32_MAX / kWidth || n != sizes[0] * sizes[1] * sizes[2] || costs.shape(0) != sizes[axis])
    throw std::invalid_argument("symbols and levels differ in number");
  if (n == 0) return;
  if (*std::max_element(symbols.data(), symbols.data() + n) >= prices.shape(0))
    throw std::invalid_argument("symbol out of range");
  size_t high = width;
  for (unsigned a = 0; a < 3; ++a)
    if (a != axis) high += *std::max_element(maps[a], maps[a] + sizes[a]);
  if (high > levels || width > kWidth) throw std::invalid_argument("a level is out of range");
  const size_t stride = levels + kWidth;
  std::vector<int32_t> padded(prices.shape(0) * stride);
  int64_t dearest = 1;
  for (size_t s = 0; s < prices.shape(0); ++s)
    for (size_t l = 0; l < levels; ++l) {
      const int32_t one = prices.data()[s * levels + l];
      if (one < 0) throw std::invalid_argument("a price is negative");
      padded[s * stride + l] = one;
      dearest = std::max<int64_t>(dearest, one);
    }
  const auto finish = [&](const auto& sums) {
    for (size_t i = 0; i < sizes[axis]; ++i)
      for (size_t j = 0; j < width; ++j) costs.data()[i * width + j] = sums[i * kWidth + j];
  };
  if (static_cast<int64_t>(n / sizes[axis]) <= INT32_MAX / dearest)  // no sum can overflow 32 bits
    finish(priced<int32_t>(symbols.data(), maps, sizes, axis, padded, stride));
  else
    finish(priced<int64_t>(symbols.data(), maps, sizes, axis, padded, stride));
}

const lilliput::Register bind([](nb::module_& m) {
  m.def("rans_encode", &encode<uint8_t>);
  m.def("rans_encode", &encode<uint16_t>);
  m.def("rans_decode", &decode<uint8_t>);
  m.def("rans_decode", &decode<uint16_t>);
  m.def("rans_decode", &decode<uint32_t>);
  m.def("rans_decode", &decode<uint64_t>);
  m.def("rans_count", &count<uint8_t>);
  m.def("rans_count", &count<uint16_t>);
  m.def("rans_price", &price<uint8_t>);
  m.def("rans_price", &price<uint16_t>);
});

}  // namespace
