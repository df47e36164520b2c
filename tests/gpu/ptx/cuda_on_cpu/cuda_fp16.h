// float16. Of finite values in its range: the kernels convert no others in the tests.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half stored) {
  const uint32_t shifted = (stored.bits & 0x7FFFu) << 13;
  float value;
  std::memcpy(&value, &shifted, 4);
  value *= 0x1p112f;  // the biases are 15 and 127
  return stored.bits & 0x8000 ? -value : value;
}

inline __half __float2half_rn(float value) {
  const bool normal = std::fabs(value) >= 0x1p-14f;
  // The unit of what is not normal, 2^-24, is that of floats from 1/2 on.
  const float magnitude = normal ? std::fabs(value) : std::fabs(value) + 0.5f;
  uint32_t bits;
  std::memcpy(&bits, &magnitude, 4);
  bits = normal ? (bits - (112u << 23) + 0xFFF + (bits >> 13 & 1)) >> 13 : bits - 0x3F000000;
  return {static_cast<uint16_t>(bits | (std::signbit(value) ? 0x8000 : 0))};
}
