// How rows of logits vote. All floating types are compared as integers of their width: sign and magnitude order them,
// -0 equals 0, and a full exponent marks what is not finite. So no conversion is needed, and every backend ranks
// classes alike by construction. Host and device.
#pragma once

#include "arithmetic.h"
#include "types.h"

namespace smoothfast {

enum class Voting { prediction, weighted, soft, logit };

constexpr int64_t kInvalidVote = -1;

// The bits of a logit as an integer that orders it. Its own inverse.
template <class Format>
SMOOTHFAST_INLINE typename Format::Bits ordered(typename Format::Bits bits) {
  using Bits = typename Format::Bits;
  // Without a branch on the sign, in which 16 bits became 32: that kept the loop over them from being vectorised.
  const Bits sign = static_cast<Bits>(bits >> (8 * sizeof(Bits) - 1));
  return static_cast<Bits>(((bits & Format::kMagnitude) ^ sign) - sign);
}

// Below every logit, as `ordered`.
template <class Format>
constexpr typename Format::Bits kLeast = static_cast<typename Format::Bits>(-Format::kMagnitude - 1);

// Whether a row with this logit is broken: it counts apart and gives no votes.
template <class Format>
SMOOTHFAST_INLINE bool not_finite(typename Format::Bits bits) {
  return (bits & Format::kInfinity) == Format::kInfinity;
}

}  // namespace smoothfast
