// How rows of logits vote. All floating types are compared as integers of their width: sign and magnitude order them,
// -0 equals 0, and a full exponent marks what is not finite. So no conversion is needed, and every backend ranks
// classes alike by construction. Host and device.
#pragma once

#include <cstdint>

#include "../random/philox.h"

namespace smoothfast {

enum class Voting { prediction, weighted, soft, logit };

constexpr int64_t kInvalidVote = -1;

template <class Signed, Signed kFullExponent>
struct Format {
  using Bits = Signed;
  static constexpr Bits kInfinity = kFullExponent;
  static constexpr Bits kMagnitude = static_cast<Bits>(~(Bits{1} << (8 * sizeof(Bits) - 1)));
  static constexpr Bits kLeast = static_cast<Bits>(-kMagnitude - 1);  // below every logit

  // Its own inverse.
  static SMOOTHFAST_INLINE Bits ordered(Bits bits) {
    // Without a branch on the sign, in which 16 bits became 32: that kept the loop over them from being vectorised.
    const Bits sign = static_cast<Bits>(bits >> (8 * sizeof(Bits) - 1));
    return static_cast<Bits>(((bits & kMagnitude) ^ sign) - sign);
  }

  static SMOOTHFAST_INLINE bool broken(Bits bits) { return (bits & kFullExponent) == kFullExponent; }
};

using Float64 = Format<int64_t, 0x7FF0000000000000>;
using Float32 = Format<int32_t, 0x7F800000>;
using Bfloat16 = Format<int16_t, 0x7F80>;
using Float16 = Format<int16_t, 0x7C00>;

}  // namespace smoothfast
