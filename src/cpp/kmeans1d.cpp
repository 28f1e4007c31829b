// Weighted one-dimensional k-means: the passes over the values and the dynamic program.
//
// The functions do what the NumPy code of lilliput/solve/buckets.py and interval_partition.py does, operation for
// operation and in the same order, so that both give the same numbers; the Python side checks every shape.
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "registry.h"

namespace {

namespace nb = nanobind;

template <typename T>
using In = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Out = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// The bits of a finite float32 as an integer that grows with its value; -0 and +0 share a key.
inline uint32_t float_key(float value) {
  value += 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

// Adds every value to its bucket. With `slots`, only buckets whose slot is >= 0 are counted, one cell for each key.
template <typename T>
void bucket_sums(In<T> values, uint32_t low, uint32_t shift, In<int32_t> slots, Out<int64_t> counts,
                 Out<double> sums) {
  const size_t length = values.shape(0);
  const T* value = values.data();
  const int32_t* slot = slots.data();
  const bool split = slots.shape(0) != 0;
  const uint32_t mask = (uint32_t{1} << shift) - 1;
  int64_t* count = counts.data();
  double* sum = sums.data();
  for (size_t i = 0; i < length; ++i) {
    const uint32_t key = float_key(static_cast<float>(value[i])) - low;
    size_t cell = key >> shift;
    if (split) {
      const int32_t base = slot[cell];
      if (base < 0) continue;
      cell = static_cast<size_t>(base) + (key & mask);
    }
    count[cell] += 1;
    sum[cell] += static_cast<double>(value[i]);
  }
}

// Copies the values of the marked buckets, in their order, to `out`, which is long enough.
template <typename T>
void bucket_gather(In<T> values, uint32_t low, uint32_t shift, In<uint8_t> marked, Out<T> out) {
  const size_t length = values.shape(0), room = out.shape(0);
  const T* value = values.data();
  const uint8_t* mark = marked.data();
  T* target = out.data();
  size_t found = 0;
  for (size_t i = 0; i < length; ++i) {
    if (mark[(float_key(static_cast<float>(value[i])) - low) >> shift] != 0 && found < room) target[found++] = value[i];
  }
}

// Index of the interval of each value: the number of thresholds below it. `first[b]` is the number of thresholds in
// the buckets before b (top 16 bits of the key), so that only the thresholds of the value's own bucket are compared.
template <typename T, typename Index>
void assign(In<T> values, In<double> thresholds, In<int32_t> first, Out<Index> out) {
  const size_t length = values.shape(0);
  const T* value = values.data();
  const double* threshold = thresholds.data();
  const int32_t* begin = first.data();
  Index* target = out.data();
  for (size_t i = 0; i < length; ++i) {
    const uint32_t bucket = float_key(static_cast<float>(value[i])) >> 16;
    const int32_t from = begin[bucket], to = begin[bucket + 1];
    int32_t index = from;
    if (from != to) {
      index = static_cast<int32_t>(std::lower_bound(threshold + from, threshold + to, static_cast<double>(value[i])) -
                                   threshold);
    }
    target[i] = static_cast<Index>(index);
  }
}

struct Split {
  double high, low;
};

// Dekker: a = high + low with 26 bits each.
inline Split split(double a) {
  const double scaled = 134217729.0 * a;
  const double high = scaled - (scaled - a);
  return {high, a - high};
}

// Dekker: a * b = high + low exactly.
inline Split exact_product(double a, double b) {
  const double product = a * b;
  const Split x = split(a), y = split(b);
  return {product, ((x.high * y.high - product) + x.high * y.low + x.low * y.high) + x.low * y.low};
}

// Difference of two double-double numbers, normalised.
inline Split difference(double ah, double al, double bh, double bl) {
  const double high = ah - bh;
  const double back = high - ah;
  const double error = (ah - (high - back)) - (bh + back);
  const double low = error + (al - bl);
  const double sum = high + low;
  return {sum, low - (sum - high)};
}

// Squared error of the points [a, b) about their mean, from prefix sums in doubles.
struct PlainCost {
  const double *weight, *first, *second;
  double operator()(size_t a, size_t b) const {
    const double moment = first[b] - first[a];
    const double cost = (second[b] - second[a]) - moment * moment / (weight[b] - weight[a]);
    return cost > 0.0 ? cost : 0.0;
  }
};

// The same from prefix sums in pairs of doubles, for clusters that are narrow beside their distance from zero.
struct PairCost {
  const double *weight, *first, *second, *first_low, *second_low;
  double operator()(size_t a, size_t b) const {
    const double mass = weight[b] - weight[a];
    const Split moment = difference(first[b], first_low[b], first[a], first_low[a]);
    const Split square = difference(second[b], second_low[b], second[a], second_low[a]);
    const Split product = exact_product(moment.high, moment.high);
    const double product_low = product.low + 2.0 * moment.high * moment.low;
    const double quotient = product.high / mass;
    const Split back = exact_product(quotient, mass);
    const double quotient_low = (((product.high - back.high) - back.low) + product_low) / mass;
    const double cost = (square.high - quotient) + (square.low - quotient_low);
    return cost > 0.0 ? cost : 0.0;
  }
};

// One layer of the dynamic program over the ends [lo, hi], whose best starts lie in [from, to], by divide and conquer.
template <typename Cost>
struct Layer {
  const Cost& cost;
  const double* previous;
  double* current;
  int32_t* start;

  void solve(int64_t lo, int64_t hi, int64_t from, int64_t to) const {
    while (lo <= hi) {
      const int64_t middle = (lo + hi) / 2;
      const int64_t last = std::min(middle - 1, to);
      double best = std::numeric_limits<double>::infinity();
      int64_t where = from;
      for (int64_t j = from; j <= last; ++j) {
        const double value = previous[j] + cost(static_cast<size_t>(j), static_cast<size_t>(middle));
        if (value < best) {
          best = value;
          where = j;
        }
      }
      current[middle] = best;
      start[middle] = static_cast<int32_t>(where);
      solve(lo, middle - 1, from, where);
      lo = middle + 1;
      from = where;
    }
  }
};

template <typename Cost>
double partition_with(const Cost& cost, int64_t length, int64_t clusters, int64_t* starts) {
  const size_t width = static_cast<size_t>(length) + 1;
  std::vector<double> previous(width), current(width);
  std::vector<int32_t> begin(width * static_cast<size_t>(clusters));
  for (int64_t end = 1; end <= length; ++end) previous[end] = cost(0, static_cast<size_t>(end));
  for (int64_t cluster = 2; cluster <= clusters; ++cluster) {
    int32_t* row = begin.data() + width * static_cast<size_t>(cluster - 1);
    const Layer<Cost> layer{cost, previous.data(), current.data(), row};
    layer.solve(cluster == clusters ? length : cluster, length - (clusters - cluster), cluster - 1, length - 1);
    previous.swap(current);
  }
  int64_t end = length;
  for (int64_t cluster = clusters; cluster >= 1; --cluster) {
    end = cluster == 1 ? 0 : begin[width * static_cast<size_t>(cluster - 1) + static_cast<size_t>(end)];
    starts[cluster - 1] = end;
  }
  return previous[length];
}

double partition(In<double> weight, In<double> first, In<double> second, In<double> first_low, In<double> second_low,
                 Out<int64_t> starts) {
  const int64_t length = static_cast<int64_t>(weight.shape(0)) - 1;
  const int64_t clusters = static_cast<int64_t>(starts.shape(0));
  if (first_low.shape(0) == 0) {
    return partition_with(PlainCost{weight.data(), first.data(), second.data()}, length, clusters, starts.data());
  }
  const PairCost cost{weight.data(), first.data(), second.data(), first_low.data(), second_low.data()};
  return partition_with(cost, length, clusters, starts.data());
}

const lilliput::Register bind([](nb::module_& m) {
  const auto release = nb::call_guard<nb::gil_scoped_release>();
  m.def("kmeans1d_bucket_sums", &bucket_sums<float>, release);
  m.def("kmeans1d_bucket_sums", &bucket_sums<double>, release);
  m.def("kmeans1d_bucket_gather", &bucket_gather<float>, release);
  m.def("kmeans1d_bucket_gather", &bucket_gather<double>, release);
  m.def("kmeans1d_assign", &assign<float, uint8_t>, release);
  m.def("kmeans1d_assign", &assign<float, int16_t>, release);
  m.def("kmeans1d_assign", &assign<double, uint8_t>, release);
  m.def("kmeans1d_assign", &assign<double, int16_t>, release);
  m.def("kmeans1d_partition", &partition, release);
});

}  // namespace
