// Loops that are unrolled whole, so that their arrays are registers; and memory that is asked for ahead.
#pragma once

#include "kernel.h"

#if defined(__GNUC__)
#define LILLIPUT_UNROLL _Pragma("GCC unroll 16")
#else
#define LILLIPUT_UNROLL
#endif

namespace lilliput {
namespace LILLIPUT_ISA {

// A cache line that will be read soon; a hint, which may point anywhere.
LILLIPUT_INLINE void soon(const void* p) {
#if defined(__GNUC__)
  __builtin_prefetch(p);
#else
  (void)p;
#endif
}

}  // namespace LILLIPUT_ISA
}  // namespace lilliput
