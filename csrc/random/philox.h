// Philox4x32-10 (Salmon et al. 2011) and the counter layout of the noise contract (docs/noise.md). Host and device.
#pragma once

#include "../rules/arithmetic.h"

namespace smoothfast {

constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;
constexpr int kRounds = 10;
constexpr uint32_t kVersion = 1;
constexpr uint32_t kRefine = 3;  // low half of the tag byte of refining bits; the stream is the high half
constexpr int kTile = 64;        // elements whose words stand together: 16 blocks of 4 words
constexpr int64_t kLowRank = int64_t{1} << 32;  // added to the number of a layer for normals that its weights share

struct Counter {
  uint32_t c0, c1, c2, c3;
};

struct Key {
  uint32_t k0, k1;
};

// What the counters of one replica share: all words but the block.
struct Row {
  uint32_t c1, c2, c3;
};

SMOOTHFAST_INLINE uint32_t high_word(uint64_t product) { return static_cast<uint32_t>(product >> 32); }

SMOOTHFAST_INLINE Counter philox(Counter c, Key key) {
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t p0 = uint64_t{kMultiplier0} * c.c0, p1 = uint64_t{kMultiplier1} * c.c2;
    c = {high_word(p1) ^ c.c1 ^ key.k0, static_cast<uint32_t>(p1), high_word(p0) ^ c.c3 ^ key.k1,
         static_cast<uint32_t>(p0)};
    key.k0 += kWeyl0;
    key.k1 += kWeyl1;
  }
  return c;
}

SMOOTHFAST_INLINE Key make_key(int64_t seed) { return {static_cast<uint32_t>(seed), high_word(seed)}; }

SMOOTHFAST_INLINE Row make_row(int64_t image_id, int64_t sample_id, uint32_t tag) {
  const uint32_t c3 = high_word(image_id) << 20 | high_word(sample_id) << 12 | tag << 4 | kVersion;
  return {static_cast<uint32_t>(sample_id), static_cast<uint32_t>(image_id), c3};
}

// The 64 bits that decide a lattice draw whose word ties with a threshold.
SMOOTHFAST_INLINE uint64_t refining_bits(uint32_t element, Row row, Key key) {
  const uint32_t stream = row.c3 >> 4 & 0xFF;
  const uint32_t c3 = (row.c3 & ~uint32_t{0xFF0}) | (stream << 4 | kRefine) << 4;
  const Counter words = philox({element, row.c1, row.c2, c3}, key);
  return uint64_t{words.c0} << 32 | words.c1;
}

}  // namespace smoothfast
