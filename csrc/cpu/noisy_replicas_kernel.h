// The body of noisy_replicas, included once per instruction set by each_isa.inc. Three passes over a tile that stays in
// L1: words -> noise -> normalised output.
namespace smoothfast {
namespace ISA_NAMESPACE {
namespace {

#include "draws_kernel.h"

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
    for (int i = 0; i < count; i += kTile) {
      if (__builtin_expect(guided_draws(words + i, kTile, guide, law.shift, noise + i), 0))
        settle(law, job.key, row, element + i, words + i, noise + i);
    }
  }

  // About one word in 100,000 shares all float bits with a threshold and is decided by the thresholds themselves.
  static void settle(const Lattice& law, Key key, Row row, uint32_t element, const uint32_t* words, int32_t* noise) {
    const int32_t* guide = biased_guide(law);
    for (int i = 0; i < kTile; ++i)
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

  static void draw(const Replicas&, int64_t, Row, uint32_t, const uint32_t* words, int count, float* noise) {
    normals(words, count, noise);
  }

  template <class Pixel>
  static inline float noisy(Pixel pixel, float noise, float sigma) {
    return fma(noise, sigma, (float)pixel);
  }

  static float sigma(const Replicas& job, int64_t channel) { return job.sigma[channel]; }
};

template <class Law, class Out, class Pixel>
inline typename Out::Stored finish(Pixel pixel, typename Law::Noise noise, float sigma, float scale, float shift,
                                   float low, float high) {
  return Out::cast(fma(clip(Law::noisy(pixel, noise, sigma), low, high), scale, shift));
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
    const int64_t aligned = begin / kTile * kTile;
    strips[g] = {(uint32_t)aligned, used, (int)((end - aligned + kTile - 1) / kTile * kTile)};
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

#define OF_DTYPES(Law, Pixel) \
  {tile<Law, F32, Pixel>, tile<Law, Bf16, Pixel>, tile<Law, F16, Pixel>, nullptr, tile<Law, I16, Pixel>}

const ReplicaKernels kernels = {
    {OF_DTYPES(LatticeLaw, uint8_t), {}},
    {OF_DTYPES(GaussianLaw, uint8_t), OF_DTYPES(GaussianLaw, float)},
    test_words,
    test_draws,
};

#undef OF_DTYPES

}  // namespace
}  // namespace ISA_NAMESPACE
}  // namespace smoothfast
