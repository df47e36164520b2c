// The part that all bodies that draw noise share, included by them once per instruction set: Philox words, normals, and
// casts of what is written. Only `words` names vector types; the compiler vectorises the other loops, provided that
// each stays a function of its own (inlined into a loop over tiles, Box-Muller ran scalar: 4 ns, not 0.4).

constexpr int kVectorBlocks = VECTOR_BYTES / 4;
typedef uint32_t Blocks __attribute__((vector_size(VECTOR_BYTES)));
typedef uint64_t Lanes __attribute__((vector_size(VECTOR_BYTES)));

// Product of the low halves of 64-bit lanes; the high halves may hold anything.
inline Lanes multiply(Lanes a, Lanes b) {
#if VECTOR_BYTES == 64
  return (Lanes)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif VECTOR_BYTES == 32
  return (Lanes)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (Lanes)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xFFFFFFFF) * (b & 0xFFFFFFFF);
#endif
}

inline Lanes load(const uint32_t* from) {
  Lanes lanes;
  __builtin_memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

inline Lanes fill(uint32_t word) { return (Lanes)((Blocks){} + word); }

// Even lanes hold the results of even blocks in their low halves, odd lanes those of odd blocks.
inline void store(uint32_t* to, Lanes even, Lanes odd) {
#if VECTOR_BYTES == 64
  const Lanes both = (Lanes)_mm512_mask_blend_epi32(0xAAAA, (__m512i)even, (__m512i)(odd << 32));
#else
  const Lanes both = (even & 0xFFFFFFFF) | (odd << 32);
#endif
  __builtin_memcpy(to, &both, sizeof both);
}

struct RoundKeys {
  uint32_t k0[kRounds], k1[kRounds];
};

inline RoundKeys round_keys(Key key) {
  RoundKeys keys;
  for (int r = 0; r < kRounds; ++r) {
    keys.k0[r] = key.k0 + r * kWeyl0;
    keys.k1[r] = key.k1 + r * kWeyl1;
  }
  return keys;
}

// Within a row run only the block (c0) changes along a strip and only the sample (c1) from row to row. What the first
// three rounds make of the block alone is computed once per tile, and what they make of the row alone once per row:
// 2.5 of the 10 rounds. Layout of `hoisted`: four arrays of `blocks` words.
[[gnu::noinline]] void hoist(uint32_t* __restrict hoisted, int blocks, uint32_t first_block, uint32_t c2, uint32_t c3,
                             const RoundKeys& keys) {
  const uint32_t a1 = kMultiplier1 * c2;
  for (int i = 0; i < blocks; ++i) {
    const uint64_t p0 = uint64_t{kMultiplier0} * (first_block + i);
    const uint32_t a2 = (uint32_t)(p0 >> 32) ^ c3 ^ keys.k1[0], a3 = (uint32_t)p0;
    const uint64_t p1 = uint64_t{kMultiplier1} * a2;
    const uint32_t b0 = (uint32_t)(p1 >> 32) ^ a1 ^ keys.k0[1], b1 = (uint32_t)p1;
    const uint64_t p2 = uint64_t{kMultiplier0} * b0;
    hoisted[i] = a3 ^ keys.k1[1];
    hoisted[blocks + i] = b1 ^ keys.k0[2];
    hoisted[2 * blocks + i] = (uint32_t)(p2 >> 32) ^ keys.k1[2];
    hoisted[3 * blocks + i] = (uint32_t)p2;
  }
}

inline uint64_t row_product(Row row, const RoundKeys& keys) {
  const uint32_t a0 = (uint32_t)(uint64_t{kMultiplier1} * row.c2 >> 32) ^ row.c1 ^ keys.k0[0];
  return uint64_t{kMultiplier0} * a0;
}

// Words of `blocks` blocks (a multiple of 16) in element order: word w of block b at 64 (b / 16) + 16 w + b % 16.
[[gnu::noinline]] void words(const uint32_t* __restrict hoisted, int blocks, uint64_t row_product,
                             const RoundKeys& keys, uint32_t* __restrict out) {
  const Lanes m0 = fill(kMultiplier0), m1 = fill(kMultiplier1);
  const Lanes high = fill((uint32_t)(row_product >> 32)), low = fill((uint32_t)row_product);
  for (int block = 0; block < blocks; block += kVectorBlocks) {
    const Lanes x0 = load(hoisted + block) ^ high, x1 = load(hoisted + blocks + block);
    const Lanes x2 = load(hoisted + 2 * blocks + block) ^ low, x3 = load(hoisted + 3 * blocks + block);
    Lanes even1 = multiply(x0, m1), odd1 = multiply(x0 >> 32, m1);
    Lanes even0 = (even1 >> 32) ^ x1, odd0 = (odd1 >> 32) ^ (x1 >> 32);
    Lanes even2 = x2, odd2 = x2 >> 32, even3 = x3, odd3 = x3 >> 32;
#pragma GCC unroll 10
    for (int r = 3; r < kRounds; ++r) {
      const Lanes k0 = fill(keys.k0[r]), k1 = fill(keys.k1[r]);
      Lanes p0 = multiply(even0, m0), p1 = multiply(even2, m1);
      even0 = (p1 >> 32) ^ even1 ^ k0;
      even2 = (p0 >> 32) ^ even3 ^ k1;
      even1 = p1;
      even3 = p0;
      p0 = multiply(odd0, m0), p1 = multiply(odd2, m1);
      odd0 = (p1 >> 32) ^ odd1 ^ k0;
      odd2 = (p0 >> 32) ^ odd3 ^ k1;
      odd1 = p1;
      odd3 = p0;
    }
    uint32_t* to = out + 4 * (block & ~15) + (block & 15);
    store(to, even0, odd0);
    store(to + 16, even1, odd1);
    store(to + 32, even2, odd2);
    store(to + 48, even3, odd3);
  }
}

// ---- normals -----------------------------------------------------------------------------------------------------

// Of `count` words (a multiple of 32): the halves of each run of 32 make radii and angles.
[[gnu::noinline]] void normals(const uint32_t* __restrict words, int count, float* __restrict out) {
  for (int pair = 0; pair < count; pair += 32)
    for (int i = 0; i < 16; ++i) {
      const NormalPair z = box_muller(words[pair + i], words[pair + 16 + i]);
      out[pair + i] = z.z0;
      out[pair + 16 + i] = z.z1;
    }
}

// ---- outputs: float32 to the stored type, to nearest even --------------------------------------------------------

struct F32 {
  using Stored = float;
  static inline float cast(float value) { return value; }
};

struct Bf16 {
  using Stored = uint16_t;
  static inline uint16_t cast(float value) {
    const uint32_t bits = bits_of(value);
    return value == value ? (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) : (uint16_t)0x7FC0;
  }
};

struct F16 {
  using Stored = uint16_t;
  static inline uint16_t cast(float value) {
    const uint32_t bits = bits_of(value), magnitude = bits & 0x7FFFFFFF, sign = bits >> 16 & 0x8000;
    const uint32_t normal = (magnitude + (magnitude >> 13 & 1) + 0xFFF - 0x38000000) >> 13;
    // Adding 1/2 leaves the bits of a subnormal half, rounded, at the end of the float.
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3F000000;
    uint32_t half = magnitude < 0x38800000 ? subnormal : normal;
    half = magnitude >= 0x47800000 ? (magnitude > 0x7F800000 ? 0x7E00 : 0x7C00) : half;
    return (uint16_t)(sign | half);
  }
};

// The nearest of its numbers; of NaN 0.
struct I16 {
  using Stored = int16_t;
  static inline int16_t cast(float value) {
    value = value == value ? value : 0.0f;
    value = value < -32768.0f ? -32768.0f : value;
    value = value > 32767.0f ? 32767.0f : value;
    return (int16_t)bits_of(value + 12582912.0f);  // from 2^23 on, floats are whole numbers; half of that for the sign
  }
};
