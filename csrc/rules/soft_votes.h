// The shares that a row of logits gives its classes under soft and logit voting, in fixed point: integers, whose sums
// depend neither on order nor on device. Only correctly rounded operations and explicit fused multiply-adds. Host and
// device.
#pragma once

#include "arithmetic.h"
#include "votes.h"

namespace smoothfast {

// Units of what a class gets (smoothfast/voting.py has them too), and of the terms that a row's probabilities are
// divided by: 2^23 of these fit into 63 bits, and one is far below the rounding of a float.
constexpr double kProbabilityUnits = 0x1p32, kLogitUnits = 0x1p20, kTermUnits = 0x1p40;

// Logits beyond count as these ends. With either unit no class gets more than 2^32: 2^31 - 1 rows fit into 63 bits.
constexpr float kLargestLogit = 0x1p12f;

// The nearest integer, to even on ties, for values up to 2^51: as no instruction of AVX2 rounds to 64 bits. Of others,
// which broken rows have, it is anything: hence no signed arithmetic.
SMOOTHFAST_INLINE int64_t fixed(double value) {
  const double shifted = value + 0x1.8p52;
  uint64_t bits;
  std::memcpy(&bits, &shifted, 8);
  return static_cast<int64_t>(bits - 0x4338000000000000);
}

// A logit as float32: float64 is rounded, to the ends of the range if it lies beyond.
template <class Format>
SMOOTHFAST_INLINE float number(typename Format::Bits bits) {
  if constexpr (sizeof bits == 8) {
    constexpr double kMost = 0x1.fffffep127;
    double value;
    std::memcpy(&value, &bits, 8);
    value = value > -kMost ? value : -kMost;
    return static_cast<float>(value < kMost ? value : kMost);
  } else if constexpr (sizeof bits == 4) {
    return float_of(static_cast<uint32_t>(bits));
  } else if constexpr (Format::kInfinity == Bfloat16::kInfinity) {
    return float_of(static_cast<uint32_t>(bits) << 16);
  } else {  // float16, on integers where it is subnormal: threads may flush subnormal numbers to zero
    const uint32_t magnitude = bits & Format::kMagnitude, sign = static_cast<uint32_t>(bits) & 0x80000000;
    const float small = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
    const uint32_t normal = (magnitude << 13) + (112u << 23);
    return float_of((magnitude < 0x400 ? bits_of(small) : normal) | sign);
  }
}

// e^x for x <= 0, within 1.1 units in the last place down to x = -32; below, and for NaN, that of -32, which is no term
// any more. Polynomial: minimax on [-ln(2)/2, ln(2)/2] in relative error, 2^-27.7.
SMOOTHFAST_INLINE float exponential(float x) {
  constexpr float kLeast = -32, kPerOctave = 1.44269504f, kHigh = 0.693147182f, kLow = -1.90465421e-9f;
  x = x > kLeast ? x : kLeast;
  const float shifted = fma(x, kPerOctave, 0x1.8p23f), octaves = shifted - 0x1.8p23f;
  const float r = fma(octaves, -kLow, fma(octaves, -kHigh, x));
  float p = 1.38144661e-3f;
  p = fma(p, r, 8.36878084e-3f);
  p = fma(p, r, 4.16683927e-2f);
  p = fma(p, r, 1.66665196e-1f);
  p = fma(p, r, 4.99999940e-1f);
  return float_of(bits_of(fma(p, r * r, r) + 1.0f) + (bits_of(shifted) << 23));
}

// A row's probabilities are its terms e^(logit - largest logit) times units_per_term(sum of fixed(term * kTermUnits)).
SMOOTHFAST_INLINE double units_per_term(int64_t total) {
  return kProbabilityUnits * kTermUnits / static_cast<double>(total);
}

SMOOTHFAST_INLINE int64_t logit_share(float logit) {
  logit = logit > -kLargestLogit ? logit : -kLargestLogit;
  return fixed((logit < kLargestLogit ? logit : kLargestLogit) * kLogitUnits);
}

}  // namespace smoothfast
