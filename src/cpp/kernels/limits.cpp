// What this core can do at most, for benchmarks to compare with: counting bits in registers, reading memory.
#include "bits.h"

namespace lilliput {
namespace LILLIPUT_ISA {

// XOR, count and add, `rounds` times 12 vectors; out gets the bits of a vector and something that depends on the work.
void count_limit(int64_t rounds, int64_t* out) {
  Bits sum[12], x = spread(0x5a5a1234u);
  for (int i = 0; i < 12; ++i) sum[i] = zero();
  for (int64_t r = 0; r < rounds; ++r) {
    x = spread(static_cast<uint32_t>(r));
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) sum[i] = counted(sum[i], exclusive(x, spread(0x01010101u * static_cast<uint32_t>(i))));
  }
  int32_t lanes[kLanes];
  int64_t all = 0;
  for (int i = 0; i < 12; ++i) {
    store(lanes, sum[i]);
    all += lanes[0];
  }
  out[0] = 32 * kLanes;
  out[1] = all;
}

// Reads n words from four places at once, as four rows of a matrix are read.
void read_limit(const int32_t* data, int64_t n, int64_t* out) {
  Bits sum[4] = {zero(), zero(), zero(), zero()};
  const int64_t quarter = n / 4 / kLanes * kLanes;
  for (int64_t k = 0; k < quarter; k += kLanes) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sum[i] = exclusive(sum[i], load(reinterpret_cast<const uint32_t*>(data) + i * quarter + k));
  }
  int32_t lanes[kLanes];
  store(lanes, exclusive(exclusive(sum[0], sum[1]), exclusive(sum[2], sum[3])));
  out[0] = lanes[0];
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput

LILLIPUT_KERNEL(count_limit)
LILLIPUT_KERNEL(read_limit)
