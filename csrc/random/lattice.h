// The lattice law: N = #{i : T[i] <= u} - M for a 96-bit u, decided by one 32-bit word and one table entry in all but
// a few draws in 100,000. The guide is built by smoothfast/ops/laws.py and relies on the very mapping below. Host
// and device.
#pragma once

#include "../rules/arithmetic.h"

namespace smoothfast {

struct Lattice {
  const int64_t* high;   // [2M] upper 32 bits of the thresholds, ascending; -1 and 2^32 are padding
  const int64_t* low;    // [2M] their lower 64 bits (the pattern of a uint64)
  const int32_t* guide;  // entry: -|N| at the low end of the bucket, above `shift`; lower bits of its threshold below
  int32_t reach;         // M
  int32_t shift;         // 23 - k, for 2^k buckets an octave
};

constexpr int kGuideBias = 127;  // exponent of the bucket of folded word 1

// Of a guide with so many entries: 31 octaves of 2^k buckets, and one more.
SMOOTHFAST_INLINE int32_t guide_shift(int64_t entries) {
  int32_t octave_bits = 0;
  while ((int64_t{31} << octave_bits) + 1 < entries) ++octave_bits;
  return 23 - octave_bits;
}

// The sampler without its rare branch: N, and whether the word shares all float bits with a threshold.
struct Draw {
  int32_t noise;
  int32_t unsure;
};

SMOOTHFAST_INLINE Draw guided_draw(uint32_t word, const int32_t* biased_guide, int32_t shift) {
  // word | 1 folds the tails exactly (its complement has the same absolute value) and is never zero.
  const int32_t signed_word = static_cast<int32_t>(word | 1);
  const float folded = static_cast<float>(signed_word < 0 ? -signed_word : signed_word);
  int32_t bits;
  std::memcpy(&bits, &folded, 4);
  const int32_t mask = (1 << shift) - 1, entry = biased_guide[bits >> shift];
  const int32_t here = bits & mask, threshold = entry & mask;
  const int32_t magnitude = (entry >> shift) + (here > threshold);
  return {signed_word < 0 ? -magnitude : magnitude, here == threshold};
}

SMOOTHFAST_INLINE const int32_t* biased_guide(const Lattice& law) {
  return law.guide - (static_cast<int64_t>(kGuideBias) << (23 - law.shift));
}

// The definition: number of thresholds <= (word, refined), by bisection on the words.
SMOOTHFAST_INLINE int32_t exact_draw(const Lattice& law, uint32_t word, uint64_t refined) {
  int32_t first = 0, last = 2 * law.reach;
  while (first < last) {
    const int32_t middle = (first + last) / 2;
    if (law.high[middle] < int64_t{word})
      first = middle + 1;
    else
      last = middle;
  }
  while (first < 2 * law.reach && law.high[first] == int64_t{word} && static_cast<uint64_t>(law.low[first]) <= refined)
    ++first;
  return first - law.reach;
}

}  // namespace smoothfast
