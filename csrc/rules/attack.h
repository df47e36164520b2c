// A step of an attack and its projection on a ball around the image, which holds in real arithmetic: every rounding
// goes towards the image. Only correctly rounded operations in a fixed order, so that all backends give the same bits.
// Host and device.
#pragma once

#include "arithmetic.h"

namespace smoothfast {

struct Attack {
  float alpha, eps;  // step and radius
  float low, high;   // of pixels
};

// The float next to `value` on the way to `target`, another value.
SMOOTHFAST_INLINE float next_towards(float value, float target) {
  const uint32_t bits = bits_of(value), away = (value > 0) == (target > value) ? 1 : -1;
  return float_of(value == 0 ? (target > 0 ? 1 : 0x80000001) : bits + away);
}

SMOOTHFAST_INLINE float round_down(double value) {
  const float near = static_cast<float>(value);
  return near > value ? next_towards(near, -__builtin_inff()) : near;
}

// Limits round inwards: no result lies outside those that were asked for.
SMOOTHFAST_INLINE Attack make_attack(double alpha, double eps, double low, double high) {
  return {static_cast<float>(alpha), round_down(eps), -round_down(-low), round_down(high)};
}

// ---- linf -----------------------------------------------------------------------------------------------------------

// The largest float that is at most image + eps. TwoSum (Knuth) gives what the sum lost; where it overflows the loss is
// NaN, and the float before infinity is right.
SMOOTHFAST_INLINE float upper_bound(float image, float eps) {
  const float sum = image + eps, part = sum - image, lost = (image - (sum - part)) + (eps - part);
  return lost >= 0 ? sum : next_towards(sum, image);
}

SMOOTHFAST_INLINE float linf_step(float adversarial, float image, float gradient, const Attack& attack) {
  const float step = gradient > 0 ? attack.alpha : gradient < 0 ? -attack.alpha : 0;  // 0 for NaN
  const float inside = clip(adversarial + step, -upper_bound(-image, attack.eps), upper_bound(image, attack.eps));
  return clip(inside, attack.low, attack.high);
}

// ---- l2 -------------------------------------------------------------------------------------------------------------

// In float64: squares of float32 are exact and neither overflow nor underflow, which no scaling in float32 would give.
// A sum of squares has so many lanes: lane i adds elements i, i + kLanes, ... one by one, and then halves are added,
// lane i + kLanes / 2 to lane i and so on, to lane 0.
constexpr int kLanes = 256;

// Of the ball, kept free for the roundings of the sum: the lanes of 2^32 elements stay below 2^-29, their root below
// 2^-30, and the few others are of 2^-53.
constexpr double kMargin = 0x1p-28;

// What the gradient is multiplied by; 0 where its norm is 0 or not finite.
SMOOTHFAST_INLINE double l2_step(double gradient_squares, const Attack& attack) {
  return gradient_squares > 0 && gradient_squares < __builtin_inf() ? attack.alpha / __builtin_sqrt(gradient_squares)
                                                                    : 0;
}

// From the image, not projected.
SMOOTHFAST_INLINE double l2_shift(float adversarial, float image, float gradient, double step) {
  return static_cast<double>(adversarial) - image + (step > 0 ? gradient * step : 0);
}

// What shifts are multiplied by.
SMOOTHFAST_INLINE double l2_factor(double shift_squares, const Attack& attack) {
  const double norm = __builtin_sqrt(shift_squares), limit = attack.eps * (1 - kMargin);
  return norm > limit ? limit / norm : 1;
}

// The move is rounded before it is compared, at most by 2^-53 of it: the margin covers that too.
SMOOTHFAST_INLINE float l2_shifted(float image, double shift, const Attack& attack) {
  const float near = static_cast<float>(image + shift);
  const bool beyond = __builtin_fabs(static_cast<double>(near) - image) > __builtin_fabs(shift);
  return clip(beyond ? next_towards(near, image) : near, attack.low, attack.high);
}

}  // namespace smoothfast
