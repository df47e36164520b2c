// Single operations on float32 and its bits that several kernels build on. Host and device, as all functions that are
// declared SMOOTHFAST_INLINE.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define SMOOTHFAST_INLINE __host__ __device__ __forceinline__
#else
#define SMOOTHFAST_INLINE inline __attribute__((always_inline))
#endif

namespace smoothfast {

SMOOTHFAST_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }

SMOOTHFAST_INLINE float clip(float value, float low, float high) {  // NaN stays NaN
  value = value < low ? low : value;
  return value > high ? high : value;
}

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

// The bits of the nearest bfloat16, ties to even.
SMOOTHFAST_INLINE uint16_t bfloat16_bits(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return static_cast<uint16_t>(bits >> 16 | 0x40);  // NaN stays one
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

}  // namespace smoothfast
