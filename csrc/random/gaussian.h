// Two standard normals from two 32-bit words by Box-Muller in float32. Only correctly rounded operations and explicit
// fused multiply-adds, so that every instruction set and the GPU give the same bits. |z| reaches sqrt(64 ln 2) = 6.66.
// Polynomials of log, sin and cos: Cephes (S. Moshier), single precision. Host and device.
#pragma once

#include "../rules/arithmetic.h"
#include "philox.h"

namespace smoothfast {

struct NormalPair {
  float z0, z1;
};

SMOOTHFAST_INLINE float negative_log(float u) {  // -ln u for u in [2^-32, 1]
  // Exponent and mantissa such that the mantissa lies in [sqrt(1/2), sqrt(2)).
  const uint32_t shifted = bits_of(u) + (0x3F800000 - 0x3F3504F3);
  const float exponent = static_cast<float>(static_cast<int32_t>(shifted >> 23) - 127);
  const float x = float_of((shifted & 0x007FFFFF) + 0x3F3504F3) - 1.0f, z = x * x;
  float p = 7.0376836292e-2f;
  p = fma(p, x, -1.1514610310e-1f);
  p = fma(p, x, 1.1676998740e-1f);
  p = fma(p, x, -1.2420140846e-1f);
  p = fma(p, x, 1.4249322787e-1f);
  p = fma(p, x, -1.6668057665e-1f);
  p = fma(p, x, 2.0000714765e-1f);
  p = fma(p, x, -2.4999993993e-1f);
  p = fma(p, x, 3.3333331174e-1f);
  float y = fma(p * z, x, exponent * -2.12194440e-4f);
  y = fma(z, -0.5f, y);
  return -fma(exponent, 0.693359375f, x + y);
}

SMOOTHFAST_INLINE NormalPair box_muller(uint32_t radius_word, uint32_t angle_word) {
  constexpr float kUnit = 0x1p-32f, kTurn = 6.283185307179586f * 0x1p-32f;
  const float u = fma(static_cast<float>(radius_word), kUnit, kUnit);
  const float radius = __builtin_sqrtf(2.0f * negative_log(u));
  // Quarter turn and the rest in [-pi/4, pi/4].
  const uint32_t quarter = (angle_word + 0x20000000u) >> 30;
  const float t = static_cast<float>(static_cast<int32_t>(angle_word - (quarter << 30))) * kTurn, z = t * t;
  const float s = fma(fma(fma(-1.9515295891e-4f, z, 8.3321608736e-3f), z, -1.6666654611e-1f) * z, t, t);
  float c = fma(fma(2.443315711809948e-5f, z, -1.388731625493765e-3f), z, 4.166664568298827e-2f);
  c = fma(c * z, z, fma(z, -0.5f, 1.0f));
  // Odd quarters swap sine and cosine, half turns negate: on bits, since a branch would keep the loop scalar.
  const uint32_t swap = (bits_of(s) ^ bits_of(c)) & (0u - (quarter & 1));
  const uint32_t cosine = bits_of(c) ^ swap ^ ((quarter + 1) & 2) << 30, sine = bits_of(s) ^ swap ^ (quarter & 2) << 30;
  return {radius * float_of(cosine), radius * float_of(sine)};
}

}  // namespace smoothfast
