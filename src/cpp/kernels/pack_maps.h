// Signs of maps as maps of bits: what pack_maps.cpp does for other kernels.
#pragma once

#include "bits.h"

namespace lilliput {
namespace LILLIPUT_ISA {

// [batch][channels][places] to [batch][places][words]; `magnitude` (may be null) becomes the mean of |x| over the channels.
void pack_signs_nchw(const float* x, int32_t* packed, float* magnitude, int64_t batch, int64_t channels, int64_t places,
                     int64_t words);
// The same of [rows][channels].
void pack_signs_nhwc(const float* x, int32_t* packed, float* magnitude, int64_t rows, int64_t channels, int64_t words);

}  // namespace LILLIPUT_ISA
}  // namespace lilliput
