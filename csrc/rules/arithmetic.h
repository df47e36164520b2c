// Single operations on float32 and its bits that several kernels build on. Host and device.
#pragma once

#include <cstring>

#include "../random/philox.h"

namespace smoothfast {

SMOOTHFAST_INLINE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

SMOOTHFAST_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

SMOOTHFAST_INLINE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace smoothfast
