// Vectors of numbers in each instruction set, and products of them. A lane holds a sample: four channels of 8 bits, two
// numbers of 16, or one sum. Included by the body of the network.

typedef int32_t Lanes __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef int16_t Halves __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef float Floats __attribute__((vector_size(VECTOR_BYTES), may_alias));
constexpr int kLanes = VECTOR_BYTES / 4;

FORCED Lanes load(const char* from) { return *(const Lanes*)from; }
FORCED void store(char* to, Lanes lanes) { *(Lanes*)to = lanes; }

// 32 bits in every lane.
FORCED Lanes spread(const char* from) {
  int32_t bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return (Lanes){} + bits;
}

// The two halves of each lane, one of which is the even channels: numbers below 2^15.
FORCED Lanes evens(Lanes bytes) { return bytes & 0x00FF00FF; }
FORCED Lanes odds(Lanes bytes) { return bytes >> 8 & 0x00FF00FF; }
FORCED Lanes low_half(Lanes halves) { return halves << 16 >> 16; }
FORCED Lanes high_half(Lanes halves) { return halves >> 16; }

// Adds the products of four channels and their weights, int8; those of channels 0 and 1, and of 2 and 3, are within 16
// bits together.
struct Bytes {
  static FORCED Lanes add_products(Lanes sum, Lanes inputs, Lanes weights) {
#if defined(VNNI) && VECTOR_BYTES == 64
    return (Lanes)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)inputs, (__m512i)weights);
#elif defined(VNNI)
    return (Lanes)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)inputs, (__m256i)weights);
#elif VECTOR_BYTES == 32
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)inputs, (__m256i)weights);
    return sum + (Lanes)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    const Halves of_even = (Halves)weights << 8 >> 8, of_odd = (Halves)weights >> 8;
    const Lanes pairs = (Lanes)((Halves)evens(inputs) * of_even + (Halves)odds(inputs) * of_odd);
    return sum + low_half(pairs) + high_half(pairs);
#endif
  }
};

// Adds the products of two numbers of 16 bits and their weights.
struct Pairs {
  static FORCED Lanes add_products(Lanes sum, Lanes inputs, Lanes weights) {
#if defined(VNNI) && VECTOR_BYTES == 64
    return (Lanes)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)inputs, (__m512i)weights);
#elif defined(VNNI)
    return (Lanes)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)inputs, (__m256i)weights);
#elif VECTOR_BYTES == 32
    return sum + (Lanes)_mm256_madd_epi16((__m256i)inputs, (__m256i)weights);
#else
    return sum + low_half(inputs) * low_half(weights) + high_half(inputs) * high_half(weights);
#endif
  }
};

// Sums shifted by one number.
FORCED Lanes shifted(Lanes sums, Lanes by) {
#if VECTOR_BYTES == 64
  return (Lanes)_mm512_sllv_epi32((__m512i)sums, (__m512i)by);
#elif VECTOR_BYTES == 32
  return (Lanes)_mm256_sllv_epi32((__m256i)sums, (__m256i)by);
#else
  return sums << by;
#endif
}

// What four sums are multiplied by, and what is then added.
struct Affine {
  Floats scale[4], bias[4];

  FORCED Affine(const char* scales, const char* biases) {
#pragma GCC unroll 4
    for (int o = 0; o < 4; ++o) {
      scale[o] = (Floats)spread(scales + 4 * o);
      bias[o] = (Floats)spread(biases + 4 * o);
    }
  }
};

// Sums of four outputs as the four bytes of a lane: rounded and clamped.
FORCED Lanes quantised(const Lanes (&sums)[4], const Affine& by) {
#if VECTOR_BYTES == 64
  __m512i q[4];
#pragma GCC unroll 4
  for (int o = 0; o < 4; ++o)
    q[o] = _mm512_cvtps_epi32(
        _mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)sums[o]), (__m512)by.scale[o], (__m512)by.bias[o]));
  const __m512i turn = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return (Lanes)_mm512_shuffle_epi8(_mm512_packus_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3])),
                                    turn);
#elif VECTOR_BYTES == 32
  __m256i q[4];
#pragma GCC unroll 4
  for (int o = 0; o < 4; ++o)
    q[o] = _mm256_cvtps_epi32(
        _mm256_fmadd_ps(_mm256_cvtepi32_ps((__m256i)sums[o]), (__m256)by.scale[o], (__m256)by.bias[o]));
  const __m256i turn = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return (Lanes)_mm256_shuffle_epi8(_mm256_packus_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3])),
                                    turn);
#else
  Lanes bytes = {};
  for (int o = 0; o < 4; ++o) {
    Floats values = __builtin_convertvector(sums[o], Floats);
    for (int lane = 0; lane < kLanes; ++lane)
      values[lane] = std::fma(values[lane], by.scale[o][lane], by.bias[o][lane]);
    values = values < 0 ? (Floats){} : values;
    values = values > 255 ? (Floats){} + 255 : values;
    bytes |= ((Lanes)(values + 8388608.0f) & 255) << 8 * o;  // from 2^23 on, floats are whole numbers
  }
  return bytes;
#endif
}
