// The body of the network, included once per instruction set.
#define ALWAYS __attribute__((always_inline))
#define FORCED inline ALWAYS
#define NOT_INLINED __attribute__((noinline))

namespace smoothfast {
namespace fused {
namespace integer {
namespace ISA_NAMESPACE {
namespace {

#include "convolution_kernel.h"
#if defined(TILES)
#include "tiles_kernel.h"
#endif

// Replicas [32][32][3] into lanes. Those beyond the last keep what was there: any numbers will do.
void spread_image(const Memory& memory, const Map& image, const int16_t* replicas, int count) {
  for (int64_t y = 0; y < 32; ++y)
    for (int64_t x = 0; x < 32; ++x) {
      const int16_t* from = replicas + (y * 32 + x) * 3;
      char* to = pixel_of(memory, image, y, x);
      for (int sample = 0; sample < count; ++sample, from += kImageElements, to += kGroup) {
        const int32_t third = (uint16_t)from[2];
        __builtin_memcpy(to, from, 4);
        __builtin_memcpy(to + VECTOR_BYTES, &third, 4);
      }
    }
}

// Sums over the pixels of the last map, and the linear layer.
void head(const Memory& memory, const Program& program, int count, float* logits) {
  const int64_t groups = program.shape.widths[2] / kGroup, classes = program.shape.classes;
  alignas(64) char sums[256 * 2 * VECTOR_BYTES];  // [groups][even and odd channels]
  for (int64_t g = 0; g < groups; ++g) {
    Lanes even = {}, odd = {};
    for (int64_t pixel = 0; pixel < 64; ++pixel) {
      const Lanes bytes = load(pixel_of(memory, program.last, pixel / 8, pixel % 8) + g * VECTOR_BYTES);
      even += evens(bytes);
      odd += odds(bytes);
    }
    store(sums + 2 * g * VECTOR_BYTES, even);
    store(sums + (2 * g + 1) * VECTOR_BYTES, odd);
  }
  const char* weights = memory.packed + program.linear;
  float unit;
  __builtin_memcpy(&unit, memory.packed + program.unit, sizeof unit);
  for (int64_t k = 0; k < classes; ++k) {
    Lanes sum = spread(memory.packed + program.linear_bias + 4 * k);
    for (int64_t i = 0; i < 2 * groups; ++i, weights += 4)
      sum = Pairs::add_products(sum, load(sums + i * VECTOR_BYTES), spread(weights));
    const Floats values = __builtin_convertvector(sum, Floats) * unit;
    for (int sample = 0; sample < count; ++sample) logits[sample * classes + k] = values[sample];
  }
}

// Replicas, at most a vector of them, to logits; `convolve_map` does a convolution of a map.
template <class By>
FORCED void run_by(const Program& program, const char* packed, char* arena, const int16_t* replicas, int count,
                   float* logits, const By& convolve_map) {
  const Memory memory = {packed, arena};
  spread_image(memory, program.image, replicas, count);
  for (const Convolution& c : program.convolutions)
    c.part == Part::image ? convolve<Pairs, 1>(memory, c) : convolve_map(memory, c);
  head(memory, program, count, logits);
}

void run(const Program& program, const char* packed, char* arena, const int16_t* replicas, int count, float* logits) {
  run_by(program, packed, arena, replicas, count, logits, [](const Memory& memory, const Convolution& c) ALWAYS {
    c.stride == 1 ? convolve<Bytes, 1>(memory, c) : convolve<Bytes, 2>(memory, c);
  });
}

const Kernels kernels = {kLanes, run};

#if defined(TILES)
void run_tiles(const Program& program, const char* packed, char* arena, const int16_t* replicas, int count,
               float* logits) {
  Tiles tiles;
  run_by(program, packed, arena, replicas, count, logits,
         [&](const Memory& memory, const Convolution& c) ALWAYS { convolve_tiles(tiles, memory, c); });
}

const Kernels of_tiles = {kLanes, run_tiles};
#endif

}  // namespace
}  // namespace ISA_NAMESPACE
}  // namespace integer
}  // namespace fused
}  // namespace smoothfast

#undef ALWAYS
#undef FORCED
#undef NOT_INLINED
