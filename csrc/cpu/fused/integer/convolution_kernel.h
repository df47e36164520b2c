// Convolutions of a vector of samples, by products of a vector and one spread weight.

#include "lanes_kernel.h"

// The packed network, and the memory of a thread.
struct Memory {
  const char* packed;
  char* arena;
};

FORCED char* pixel_of(const Memory& memory, const Map& map, int64_t y, int64_t x) {
  return memory.arena + map.at + y * map.row + x * map.pixel;
}

// What is beside the sums of four outputs of pixels side by side: where their inputs are, how many an output takes, and
// where its weights are and by how much it is shifted.
struct FourBeside {
  const char *from, *weights, *shifts;
  int64_t pixel, inputs, next_from;

  FourBeside() = default;
  FORCED FourBeside(const Memory& memory, const Beside& beside, int64_t y, int64_t x, int64_t output)
      : from(pixel_of(memory, beside.map, y * beside.stride, x * beside.stride) + output / kGroup * beside.next),
        weights(memory.packed + beside.weights + output * beside.inputs),
        shifts(memory.packed + beside.shifts + output * 4),
        pixel(beside.map.pixel * beside.stride),
        inputs(beside.inputs),
        next_from(beside.next) {}

  // Goes on to the next four outputs.
  FORCED void advance() {
    from += next_from;
    weights += 4 * inputs;
    shifts += 16;
  }
};

// Sums that begin with what is beside them; they are 0.
template <int kPixels>
FORCED void begin_beside(Lanes (&sums)[kPixels][4], const FourBeside& beside) {
  const char *from = beside.from, *weights = beside.weights;
  for (int64_t i = 0; i < beside.inputs; i += kGroup, from += VECTOR_BYTES, weights += 16) {
    Lanes inputs[kPixels];
#pragma GCC unroll 4
    for (int p = 0; p < kPixels; ++p) inputs[p] = load(from + p * beside.pixel);
#pragma GCC unroll 4
    for (int o = 0; o < 4; ++o) {
      const Lanes weight = spread(weights + 4 * o);
#pragma GCC unroll 4
      for (int p = 0; p < kPixels; ++p) sums[p][o] = Bytes::add_products(sums[p][o], inputs[p], weight);
    }
  }
#pragma GCC unroll 4
  for (int o = 0; o < 4; ++o) {
    const Lanes by = spread(beside.shifts + 4 * o);
#pragma GCC unroll 4
    for (int p = 0; p < kPixels; ++p) sums[p][o] = shifted(sums[p][o], by);
  }
}

// A block of sums in registers: pixels side by side, four outputs of each. Inputs that taps share are loaded once.
constexpr int kPixels = VECTOR_BYTES == 64 ? 4 : 2;

// Four outputs from `output` on, of the pixels from (y, x) on. kLeft, kRight: whether the taps on that side of the
// first or the last pixel are outside the map.
template <class Product, int kStride, bool kLeft, bool kRight>
FORCED void convolve_block(const Memory& memory, const Convolution& c, int64_t y, int64_t x, int64_t output) {
  constexpr int kInputs = (kPixels - 1) * kStride + 3;
  const int64_t groups = c.groups();
  Lanes sums[kPixels][4] = {};
  if (c.part == Part::second) begin_beside(sums, FourBeside(memory, c.beside, y, x, output));
  const int first = y == 0 ? 1 : 0, last = kStride == 1 && y == c.size - 1 ? 2 : 3;
  for (int ky = first; ky < last; ++ky) {
    const char* in = pixel_of(memory, c.in, y * kStride + ky - 1, x * kStride - 1);
    const char* weights = memory.packed + c.weights + (output / kGroup * 3 + ky) * groups * 48;
    for (int64_t g = 0; g < groups; ++g, in += VECTOR_BYTES, weights += 48) {
      Lanes inputs[kInputs];
#pragma GCC unroll 9
      for (int i = kLeft; i < kInputs - kRight; ++i) inputs[i] = load(in + i * c.in.pixel);
#pragma GCC unroll 3
      for (int kx = 0; kx < 3; ++kx)
#pragma GCC unroll 4
        for (int o = 0; o < 4; ++o) {
          const Lanes weight = spread(weights + kx * 16 + o * 4);
#pragma GCC unroll 4
          for (int p = 0; p < kPixels; ++p) {
            const int i = p * kStride + kx;
            if (i >= kLeft && i < kInputs - kRight) sums[p][o] = Product::add_products(sums[p][o], inputs[i], weight);
          }
        }
    }
  }
  const char *scale = memory.packed + c.scale + output * 4, *bias = memory.packed + c.bias + output * 4;
  char* out = pixel_of(memory, c.out, y, x) + output / kGroup * VECTOR_BYTES;
  const int row = y == 0 ? 0 : y == c.size - 1 ? 2 : 1;
#pragma GCC unroll 4
  for (int p = 0; p < kPixels; ++p) {
    const int column = kLeft && p == 0 ? 0 : kRight && p == kPixels - 1 ? 2 : 1;
    const int64_t place = c.part == Part::image ? (3 * row + column) * c.outputs * 4 : 0;
    store(out + p * c.out.pixel, quantised(sums[p], Affine(scale, bias + place)));
  }
}

template <class Product, int kStride>
NOT_INLINED void convolve(const Memory& memory, const Convolution& c) {
  constexpr bool kRight = kStride == 1;
  for (int64_t y = 0; y < c.size; ++y)
    for (int64_t output = 0; output < c.outputs; output += kGroup) {
      convolve_block<Product, kStride, true, false>(memory, c, y, 0, output);
      for (int64_t x = kPixels; x < c.size - kPixels; x += kPixels)
        convolve_block<Product, kStride, false, false>(memory, c, y, x, output);
      convolve_block<Product, kStride, false, kRight>(memory, c, y, c.size - kPixels, output);
    }
}
