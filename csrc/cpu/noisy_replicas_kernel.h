// The body of noisy_replicas, included once per instruction set by each_isa.inc. Three passes over a tile that stays in
// L1: words -> noise -> normalised output. Only `words` names vector types; the compiler vectorises the other loops,
// provided that each pass stays a function of its own (inlined into the tile loop, Box-Muller ran scalar: 4 ns, not
// 0.4).
namespace smoothfast {
namespace ISA_NAMESPACE {
namespace {

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

// ---- laws: `count` words (a multiple of 64) to noise -----------------------------------------------------------

[[gnu::noinline]] int guided_draws(const uint32_t* __restrict words, int count, const int32_t* __restrict guide,
                                   int32_t shift, int32_t* __restrict noise) {
  int32_t unsure = 0;
  for (int i = 0; i < count; ++i) {
    const Draw draw = guided_draw(words[i], guide, shift);
    noise[i] = draw.noise;
    unsure |= draw.unsure;
  }
  return unsure;
}

struct LatticeLaw {
  using Noise = int32_t;

  static void draw(const Replicas& job, int64_t channel, Row row, uint32_t element, const uint32_t* words, int count,
                   int32_t* noise) {
    const Lattice& law = job.lattice[channel];
    const int32_t* guide = biased_guide(law);
    for (int i = 0; i < count; i += kStrip) {
      if (__builtin_expect(guided_draws(words + i, kStrip, guide, law.shift, noise + i), 0))
        settle(law, job.key, row, element + i, words + i, noise + i);
    }
  }

  // About one word in 100,000 shares all float bits with a threshold and is decided by the thresholds themselves.
  static void settle(const Lattice& law, Key key, Row row, uint32_t element, const uint32_t* words, int32_t* noise) {
    const int32_t* guide = biased_guide(law);
    for (int i = 0; i < kStrip; ++i)
      if (guided_draw(words[i], guide, law.shift).unsure)
        noise[i] = exact_draw(law, words[i], refining_bits(element + i, row, key));
  }

  template <class Pixel>
  static inline float noisy(Pixel pixel, int32_t noise, float) {
    return (float)(pixel + noise);
  }

  static float sigma(const Replicas&, int64_t) { return 0; }
};

struct GaussianLaw {
  using Noise = float;

  [[gnu::noinline]] static void draw(const Replicas&, int64_t, Row, uint32_t, const uint32_t* __restrict words,
                                     int count, float* __restrict noise) {
    for (int pair = 0; pair < count; pair += 32)
      for (int i = 0; i < 16; ++i) {
        const NormalPair z = box_muller(words[pair + i], words[pair + 16 + i]);
        noise[pair + i] = z.z0;
        noise[pair + 16 + i] = z.z1;
      }
  }

  template <class Pixel>
  static inline float noisy(Pixel pixel, float noise, float sigma) {
    return fused(noise, sigma, (float)pixel);
  }

  static float sigma(const Replicas& job, int64_t channel) { return job.sigma[channel]; }
};

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

template <class Law, class Out, class Pixel>
inline typename Out::Stored finish(Pixel pixel, typename Law::Noise noise, float sigma, float scale, float shift,
                                   float low, float high) {
  float value = Law::noisy(pixel, noise, sigma);
  value = value < low ? low : value;
  value = value > high ? high : value;
  return Out::cast(fused(value, scale, shift));
}

template <class Law, class Out, class Pixel>
[[gnu::noinline]] void write_strip(const typename Law::Noise* __restrict noise, const Pixel* __restrict pixels,
                                   int count, const Replicas& job, int64_t channel,
                                   typename Out::Stored* __restrict out, int64_t stride) {
  const float sigma = Law::sigma(job, channel), scale = job.scale[channel], shift = job.shift[channel];
  const float low = job.low, high = job.high;
  if (stride == 1) {
    for (int i = 0; i < count; ++i) out[i] = finish<Law, Out>(pixels[i], noise[i], sigma, scale, shift, low, high);
  } else {
    for (int i = 0; i < count; ++i)
      out[i * stride] = finish<Law, Out>(pixels[i], noise[i], sigma, scale, shift, low, high);
  }
}

// Three planes into interleaved pixels.
template <class Stored>
[[gnu::noinline]] void interleave(const Stored* __restrict p0, const Stored* __restrict p1, const Stored* __restrict p2,
                                  int count, Stored* __restrict out) {
  for (int i = 0; i < count; ++i) {
    out[3 * i] = p0[i];
    out[3 * i + 1] = p1[i];
    out[3 * i + 2] = p2[i];
  }
}

// All rows of a run on one tile.
template <class Law, class Out, class Pixel>
void tile(const Replicas& job, const RowRun& run, const Tile& tile) {
  alignas(64) uint32_t hoisted[kBufferWords], word_buffer[kBufferWords];
  alignas(64) typename Law::Noise noise_buffer[kBufferWords];
  alignas(64) typename Out::Stored planes[kMaxGroup][kInterleavedPixels];
  struct {
    uint32_t element;  // first element of the strip's first block of 64
    int offset, count;
  } strips[kMaxGroup];
  const typename Law::Noise* noise[kMaxGroup];

  const RoundKeys keys = round_keys(job.key);
  const Row common = make_row(job.image_ids[run.first], job.sample_ids[run.first], job.stream);
  int used = 0;
  for (int g = 0; g < tile.group; ++g) {
    const int64_t begin = (tile.channel + g) * job.plane + tile.begin, end = begin + tile.end - tile.begin;
    const int64_t aligned = begin / kStrip * kStrip;
    strips[g] = {(uint32_t)aligned, used, (int)((end - aligned + kStrip - 1) / kStrip * kStrip)};
    noise[g] = noise_buffer + used + (begin - aligned);
    hoist(hoisted + used, strips[g].count / 4, strips[g].element / 4, common.c2, common.c3, keys);
    used += strips[g].count;
  }

  const int count = (int)(tile.end - tile.begin);
  const int64_t elements = job.channels * job.plane, stride = job.channels_last ? job.channels : 1;
  const Pixel* pixels = (const Pixel*)job.images + run.slot * elements + tile.channel * job.plane + tile.begin;
  const int64_t at =
      job.channels_last ? tile.begin * job.channels + tile.channel : tile.channel * job.plane + tile.begin;
  for (int64_t r = run.first; r < run.last; ++r) {
    const Row row = {(uint32_t)job.sample_ids[r], common.c2, common.c3};
    const uint64_t product = row_product(row, keys);
    for (int g = 0; g < tile.group; ++g) {
      const auto& strip = strips[g];
      words(hoisted + strip.offset, strip.count / 4, product, keys, word_buffer + strip.offset);
      Law::draw(job, tile.channel + g, row, strip.element, word_buffer + strip.offset, strip.count,
                noise_buffer + strip.offset);
    }
    typename Out::Stored* out = (typename Out::Stored*)job.out + r * elements + at;
    if (tile.group == 1) {
      write_strip<Law, Out>(noise[0], pixels, count, job, tile.channel, out, stride);
      continue;
    }
    for (int g = 0; g < kMaxGroup; ++g)
      write_strip<Law, Out>(noise[g], pixels + g * job.plane, count, job, g, planes[g], 1);
    interleave(planes[0], planes[1], planes[2], count, out);
  }
}

void test_words(Key key, Row row, uint32_t first_block, int blocks, uint32_t* out) {
  alignas(64) uint32_t hoisted[4 * 64];
  const RoundKeys keys = round_keys(key);
  for (int block = 0; block < blocks; block += 64) {
    const int count = blocks - block < 64 ? blocks - block : 64;
    hoist(hoisted, count, first_block + block, row.c2, row.c3, keys);
    words(hoisted, count, row_product(row, keys), keys, out + 4 * block);
  }
}

void test_draws(const Lattice& law, const uint32_t* words, int count, int32_t* out, uint8_t* unsure) {
  const int32_t* guide = biased_guide(law);
  guided_draws(words, count, guide, law.shift, out);
  for (int i = 0; i < count; ++i) unsure[i] = (uint8_t)guided_draw(words[i], guide, law.shift).unsure;
}

const ReplicaKernels kernels = {
    {{tile<LatticeLaw, F32, uint8_t>, tile<LatticeLaw, Bf16, uint8_t>, tile<LatticeLaw, F16, uint8_t>}, {}},
    {{tile<GaussianLaw, F32, uint8_t>, tile<GaussianLaw, Bf16, uint8_t>, tile<GaussianLaw, F16, uint8_t>},
     {tile<GaussianLaw, F32, float>, tile<GaussianLaw, Bf16, float>, tile<GaussianLaw, F16, float>}},
    test_words,
    test_draws,
};

}  // namespace
}  // namespace ISA_NAMESPACE
}  // namespace smoothfast
