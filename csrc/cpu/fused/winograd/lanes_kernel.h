// Vectors of float32 in each instruction set, and the numbers that products are of. Included by the body of the
// network.

typedef float Lanes __attribute__((vector_size(VECTOR_BYTES)));
constexpr int kLanes = VECTOR_BYTES / 4;

FORCED Lanes load(const float* from) { return *(const Lanes*)from; }
FORCED Lanes load_anywhere(const float* from) {
  Lanes lanes;
  __builtin_memcpy(&lanes, from, sizeof lanes);
  return lanes;
}
FORCED void store(float* to, Lanes lanes) { *(Lanes*)to = lanes; }
FORCED Lanes fill(float value) { return (Lanes){} + value; }

// a b + c, and c - a b: one rounding, two without the instruction.
FORCED Lanes fused(Lanes a, Lanes b, Lanes c) {
#if VECTOR_BYTES == 64
  return (Lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif VECTOR_BYTES == 32
  return (Lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
FORCED Lanes fused_away(Lanes a, Lanes b, Lanes c) {
#if VECTOR_BYTES == 64
  return (Lanes)_mm512_fnmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif VECTOR_BYTES == 32
  return (Lanes)_mm256_fnmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return c - a * b;
#endif
}

// Numbers a fixed distance apart.
FORCED Lanes gather(const float* from, int64_t distance) {
#if VECTOR_BYTES == 64
  const __m512i numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return (Lanes)_mm512_i32gather_ps(_mm512_mullo_epi32(numbers, _mm512_set1_epi32((int)distance)), from, 4);
#elif VECTOR_BYTES == 32
  const __m256i numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return (Lanes)_mm256_i32gather_ps(from, _mm256_mullo_epi32(numbers, _mm256_set1_epi32((int)distance)), 4);
#else
  Lanes lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = from[i * distance];
  return lanes;
#endif
}

// NaN, as the second operand of a maximum, stays.
FORCED Lanes relu(Lanes lanes) {
#if VECTOR_BYTES == 64
  return (Lanes)_mm512_max_ps(_mm512_setzero_ps(), (__m512)lanes);
#elif VECTOR_BYTES == 32
  return (Lanes)_mm256_max_ps(_mm256_setzero_ps(), (__m256)lanes);
#else
  for (int i = 0; i < kLanes; ++i) lanes[i] = lanes[i] < 0 ? 0 : lanes[i];
  return lanes;
#endif
}

// A bit for each lane: which are positive, and zeros where they are not.
#if VECTOR_BYTES == 64
using Bits = uint16_t;
FORCED Bits positive(Lanes lanes) { return _mm512_cmp_ps_mask((__m512)lanes, _mm512_setzero_ps(), _CMP_GT_OQ); }
FORCED Lanes where(Bits bits, Lanes lanes) { return (Lanes)_mm512_maskz_mov_ps(bits, (__m512)lanes); }
#elif VECTOR_BYTES == 32
using Bits = uint8_t;
FORCED Bits positive(Lanes lanes) {
  return (Bits)_mm256_movemask_ps(_mm256_cmp_ps((__m256)lanes, _mm256_setzero_ps(), _CMP_GT_OQ));
}
FORCED Lanes where(Bits bits, Lanes lanes) {
  const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i on = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits), each), each);
  return (Lanes)_mm256_and_ps((__m256)lanes, _mm256_castsi256_ps(on));
}
#else
using Bits = uint8_t;
FORCED Bits positive(Lanes lanes) {
  int bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= (lanes[i] > 0) << i;
  return (Bits)bits;
}
FORCED Lanes where(Bits bits, Lanes lanes) {
  for (int i = 0; i < kLanes; ++i) lanes[i] = bits >> i & 1 ? lanes[i] : 0;
  return lanes;
}
#endif

// Keeps GCC from folding a broadcast into each product that takes it: one load, and not as many as there are panels.
FORCED Lanes kept(Lanes lanes) {
#if defined(__x86_64__)
  asm("" : "+v"(lanes));
#endif
  return lanes;
}

struct Float32 {
  using Stored = float;
  static constexpr int kTogether = 1;  // inputs in a product

  static FORCED void put(float* to, Lanes lanes) { store(to, lanes); }
  static FORCED Lanes spread(const float* from) { return fill(*from); }
  static FORCED Lanes add_product(Lanes inputs, Lanes weights, Lanes sum) { return fused(inputs, weights, sum); }
  // Weights of one input, or of two: [lanes][together].
  static FORCED void put_weights(float* to, const Lanes* of_inputs) { store(to, of_inputs[0]); }
};

#if defined(PRODUCTS_OF_BF16)
struct BFloat16 {
  using Stored = uint16_t;
  static constexpr int kTogether = 2;

  static FORCED void put(uint16_t* to, Lanes lanes) {
    _mm256_store_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh((__m512)lanes));
  }
  static FORCED Lanes spread(const uint16_t* from) {
    int32_t pair;
    __builtin_memcpy(&pair, from, sizeof pair);
    return (Lanes)_mm512_set1_epi32(pair);
  }
  static FORCED Lanes add_product(Lanes inputs, Lanes weights, Lanes sum) {
    return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)inputs, (__m512bh)weights);
  }
  static FORCED void put_weights(uint16_t* to, const Lanes* of_inputs) {
    const __m512i first = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)of_inputs[0]));
    const __m512i second = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)of_inputs[1]));
    _mm512_store_si512(to, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
  }
};
#endif

// The shape of a block of sums in registers: outputs of a panel in vectors, by tiles or pixels. 16 of the 32 registers
// of AVX-512, 8 of the 16 of AVX2, whose products take 4 cycles, two of them beginning in each.
template <int kPanel>
struct Block {
  static constexpr int kPanelWidth = kPanel;
  static constexpr int kVectors = VECTOR_BYTES == 64 ? kPanel / 16 : 16 / kLanes;
  static constexpr int kRows = VECTOR_BYTES == 64 ? (kPanel == 64 ? 4 : 8) : VECTOR_BYTES == 32 ? 4 : 1;
  static constexpr int kWidth = kVectors * kLanes;
  Lanes sums[kRows][kVectors];

  FORCED void fill_all(const float* from) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n) sums[r][n] = from ? load(from + n * kLanes) : (Lanes){};
  }

  // Adds inputs[row next + k] weights[k][outputs] for k < count.
  template <class Number>
  FORCED void add_products(const typename Number::Stored* inputs, int64_t next, const typename Number::Stored* weights,
                           int64_t count) {
    constexpr int kTogether = Number::kTogether;
#pragma GCC unroll 4
    for (int64_t k = 0; k < count; k += kTogether) {
      Lanes of_outputs[kVectors];
#pragma GCC unroll 4
      for (int n = 0; n < kVectors; ++n)
        of_outputs[n] = load((const float*)(weights + k * kPanel + n * kLanes * kTogether));
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        Lanes input = Number::spread(inputs + r * next + k);
        if (kVectors > 1) input = kept(input);
#pragma GCC unroll 4
        for (int n = 0; n < kVectors; ++n) sums[r][n] = Number::add_product(input, of_outputs[n], sums[r][n]);
      }
    }
  }
};
